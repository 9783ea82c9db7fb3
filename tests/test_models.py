"""Models by name: every ReLU replaced, initial weights and torchvision's own forward preserved, normalisation inside."""

import dataclasses
import json

import pytest
import torch
import torchvision
from torch import nn

from sat_ray.activations import ACTIVATIONS, Activation
from sat_ray.models import MODELS, ModelSpec, Normalized, build_model, model_from_spec

TORCHVISION_MODELS = tuple(name for name in MODELS if name != "small_resnet")
BLOCKS = {"18": (8, 2), "34": (16, 2), "50": (16, 3), "101": (33, 3), "152": (50, 3)}  # residual blocks, activations in each


def depth(name: str) -> str:
    """Read the depth out of a torchvision name: `wide_resnet50_2` -> "50"."""
    return next(d for d in sorted(BLOCKS, key=len, reverse=True) if f"net{d}" in name or f"next{d}" in name)


def activations(model: nn.Module) -> list[Activation]:
    """List the model's activation modules."""
    return [module for module in model.modules() if isinstance(module, Activation)]


def test_all_of_torchvisions_residual_networks_are_offered() -> None:
    assert set(TORCHVISION_MODELS) == {
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
        "wide_resnet50_2", "wide_resnet101_2",
    }  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION_MODELS)
def test_every_relu_is_replaced_and_counted_and_no_parameter_is_lost(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, activation="silu", num_classes=1000)
    blocks, per_block = BLOCKS[depth(name)]
    assert len(activations(model)) == 1 + blocks * per_block
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize(("name", "count"), [("resnet18", 17), ("resnet50", 49), ("small_resnet", 7)])
def test_an_image_passes_each_activation_module_exactly_once(name: str, count: int) -> None:
    model = build_model(name, activation="gelu", num_classes=10, stem="small", seed=0).eval()
    calls: list[nn.Module] = []
    for module in activations(model):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    model(torch.rand(1, 3, 16, 16))
    assert len(calls) == len(set(calls)) == len(activations(model)) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_with_relu_the_forward_is_torchvisions_bit_for_bit(name: str) -> None:
    plain = torchvision.models.get_model(name, weights=None, num_classes=7)
    ours = build_model(name, activation="relu", num_classes=7, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ours.body.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.train()(x), plain.train()(x))
    assert torch.equal(ours.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("name", "others"), [("small_resnet", sorted(ACTIVATIONS)), ("resnet18", ["silu", "smoothrelu_learned"])])
def test_one_seed_gives_every_activation_the_same_initial_weights(name: str, others: list[str]) -> None:
    relu = build_model(name, activation="relu", num_classes=10, stem="small", seed=3).state_dict()
    for activation in others:
        other = build_model(name, activation=activation, num_classes=10, stem="small", seed=3).state_dict()
        assert {key for key in other if not key.endswith(".beta")} == set(relu)
        assert all(torch.equal(other[key], value) for key, value in relu.items())


def test_a_seed_leaves_the_global_generator_alone_and_other_seeds_differ() -> None:
    before = torch.random.get_rng_state()
    a, b = (build_model("small_resnet", num_classes=10, in_channels=1, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(a.body.conv1.weight, b.body.conv1.weight)


def test_initial_weights_are_torchvisions_own() -> None:
    torch.manual_seed(5)
    plain = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    ours = build_model("resnet18", activation="mish", num_classes=10, seed=5).body.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in plain.items())


def test_a_learned_alpha_is_one_parameter_per_activation() -> None:
    model = build_model("resnet18", activation="smoothrelu_learned", num_classes=10, stem="small", seed=0)
    betas = [module.beta for module in activations(model)]
    assert len({id(beta) for beta in betas}) == 17
    assert sum(name.endswith(".beta") for name, _ in model.named_parameters()) == 17


def test_normalisation_is_the_first_layer_and_takes_pixels() -> None:
    model = build_model("small_resnet", activation="silu", num_classes=10, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), seed=0).eval()
    x = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack([(x[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.2), (0.5, 0.3), (0.9, 0.4)])], dim=1)
    assert torch.allclose(model(x), model.body(by_hand), atol=1e-6)
    assert {"mean", "std"} <= set(model.state_dict())
    defaults = build_model("resnet18", num_classes=10, seed=0)
    assert defaults.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_the_small_stem_keeps_small_images_large() -> None:
    sizes = {}
    for stem in ("small", "imagenet"):
        model = build_model("resnet18", num_classes=10, in_channels=1, stem=stem, seed=0).eval()
        model.body.layer1.register_forward_hook(lambda _m, args, _o, stem=stem: sizes.__setitem__(stem, args[0].shape[-1]))
        assert model(torch.rand(1, 1, 32, 32)).shape == (1, 10)
    assert sizes == {"small": 32, "imagenet": 8}


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3"), ("small_resnet", "bn2")])
def test_zero_gamma_starts_every_block_as_its_shortcut(name: str, last: str) -> None:
    model = build_model(name, num_classes=10, stem="small", zero_gamma=True, seed=0)
    gammas = [getattr(module, last).weight for module in model.modules() if hasattr(module, "act2")]
    assert gammas
    assert all(bool((gamma == 0).all()) for gamma in gammas)


def test_a_spec_survives_json_and_builds_the_same_model() -> None:
    model = build_model("small_resnet", activation="parametric_softplus", alpha=5.0, num_classes=10, in_channels=1, width=8, seed=0)
    again = model_from_spec(ModelSpec(**json.loads(json.dumps(dataclasses.asdict(model.spec)))), seed=0)
    assert again.spec == model.spec
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "model 'resnet81' is unknown; did you mean .*resnet18"),
        ({"stem": "smal"}, "did you mean small"),
        ({"activation": "rleu"}, "did you mean .*relu"),
        ({"activation": "silu", "alpha": 2.0}, "takes no alpha"),
        ({"num_classes": 1}, "num_classes is 1; allowed"),
        ({"in_channels": 0}, "in_channels is 0; allowed"),
        ({"width": 0}, "width is 0; allowed"),
        ({"mean": (0.5,)}, "mean and std need one number for each of 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, "std > 0"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(**{"name": "small_resnet", "num_classes": 10, "seed": 0, **arguments})


def test_models_come_in_train_mode_and_as_normalized() -> None:
    model = build_model("small_resnet", num_classes=10, in_channels=1, seed=0)
    assert model.training
    assert isinstance(model, Normalized)
    assert "small_resnet" in MODELS
