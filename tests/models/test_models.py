"""Models by name: every ReLU replaced, initial weights and torchvision's own forward preserved,
normalisation inside.
"""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.efficientnet import MBConv

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.models import MODELS, ModelSpec, Normalized, build_model, model_from_spec
from sat_ray.models.architectures.sizes import SCALES
from sat_ray.models.spec import TORCHVISION_MODELS

BLOCKS = {
    "18": (8, 2),
    "34": (16, 2),
    "50": (16, 3),
    "101": (33, 3),
    "152": (50, 3),
}  # residual blocks, activations in each


def depth(name: str) -> str:
    """Read the depth out of a torchvision name: `wide_resnet50_2` -> "50"."""
    return next(
        d for d in sorted(BLOCKS, key=len, reverse=True) if f"net{d}" in name or f"next{d}" in name
    )


def meta_model(name: str, **settings: object) -> Normalized:
    """Build a model without memory: shapes and counts alone."""
    with torch.device("meta"):
        return build_model(name, **({"activation": "silu", "num_classes": 1000} | settings))


def parameters(model: nn.Module) -> int:
    """Count the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def activations(model: nn.Module) -> list[Activation]:
    """List the model's activation modules."""
    return [module for module in model.modules() if isinstance(module, Activation)]


def test_all_of_torchvisions_residual_networks_are_offered() -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    residual = ("resnet", "resnext", "wide_resnet")
    assert set(TORCHVISION_MODELS) == {name for name in known if name.startswith(residual)}


@pytest.mark.parametrize("name", TORCHVISION_MODELS)
def test_every_relu_is_replaced_and_counted_and_no_parameter_is_lost(name: str) -> None:
    model = meta_model(name)
    blocks, per_block = BLOCKS[depth(name)]
    assert len(activations(model)) == 1 + blocks * per_block
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert (
        parameters(model) == torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    )


def resnext_parameters(
    blocks: tuple[int, ...], groups: int, width: int, classes: int = 1000
) -> int:
    """Count a ResNeXt by hand: stem, bottlenecks (1 x 1 to m, grouped 3 x 3, 1 x 1 to 4 p;
    BatchNorms have two numbers a channel), fc.
    """
    total, inputs = 3 * 64 * 49 + 2 * 64, 64
    for count, planes in zip(blocks, (64, 128, 256, 512), strict=True):
        middle, outputs = planes * width * groups // 64, 4 * planes
        for number in range(count):
            total += (
                inputs * middle
                + middle * middle // groups * 9
                + middle * outputs
                + 2 * (2 * middle + outputs)
            )
            total += inputs * outputs + 2 * outputs if number == 0 else 0
            inputs = outputs
    return total + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "blocks", "groups", "width"),
    [
        (
            "resnet50",
            (3, 4, 6, 3),
            1,
            64,
        ),  # the formula itself, on two counts that torchvision publishes
        ("resnext50_32x4d", (3, 4, 6, 3), 32, 4),
        ("resnext50_32x8d", (3, 4, 6, 3), 32, 8),  # not in torchvision
        ("resnext152_32x8d", (3, 8, 36, 3), 32, 8),
    ],
)
def test_the_papers_resnexts_have_the_parameters_of_the_formula(
    name: str, blocks: tuple[int, ...], groups: int, width: int
) -> None:
    model = meta_model(name)
    assert parameters(model) == resnext_parameters(blocks, groups, width)
    if name in torchvision.models.list_models():
        assert (
            parameters(model)
            == torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
        )
    assert len(activations(model)) == 1 + 3 * sum(blocks)


def efficientnet_layout(width: float, depth: float) -> list[tuple[int, int, int, int, int]]:
    """List every MBConv block as (expansion, kernel, stride, inputs, outputs),
    from Tan and Le 2019 alone.
    """

    def channels(count: float) -> int:
        rounded = max(8, int(count * width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * count * width else rounded

    table = [
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    ]
    blocks, inputs = [], channels(32)
    for expansion, kernel, stride, outputs, count in table:
        for number in range(math.ceil(count * depth)):
            blocks.append(
                (expansion, kernel, stride if number == 0 else 1, inputs, channels(outputs))
            )
            inputs = channels(outputs)
    return blocks


def efficientnet_parameters(width: float, depth: float, classes: int = 1000) -> int:
    """Count an EfficientNet by hand: stem, expansion, depthwise, squeeze-and-excitation (with
    biases), projection, head, classifier.
    """
    blocks = efficientnet_layout(width, depth)
    stem, last = blocks[0][3], blocks[-1][4]
    total = 27 * stem + 2 * stem
    for expansion, kernel, _, inputs, outputs in blocks:
        middle, squeezed = expansion * inputs, max(1, inputs // 4)
        total += inputs * middle + 2 * middle if expansion != 1 else 0
        total += kernel * kernel * middle + 2 * middle
        total += 2 * middle * squeezed + middle + squeezed
        total += middle * outputs + 2 * outputs
    return total + 4 * last * last + 8 * last + (4 * last + 1) * classes


@pytest.mark.parametrize("name", SCALES)
def test_efficientnets_have_the_published_parameters_and_one_activation_per_call(name: str) -> None:
    width, depth_factor, _ = SCALES[name]
    model, blocks = meta_model(name), efficientnet_layout(width, depth_factor)
    # B0 to B7: published by torchvision; L1: no count is published, the formula gives 272,630,564
    published = (
        272_630_564
        if name == "efficientnet_l1"
        else torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    )
    assert parameters(model) == efficientnet_parameters(width, depth_factor) == published
    # stem and head; in a block: expansion (not in the first stage), depthwise,
    # squeeze-and-excitation
    assert len(activations(model)) == 2 + sum(2 + (expansion != 1) for expansion, *_ in blocks)
    assert not any(isinstance(module, nn.SiLU) for module in model.modules())
    assert sum(isinstance(module, nn.Sigmoid) for module in model.modules()) == len(blocks)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "resnet18",
            11_173_962,
        ),
        # the CIFAR-10 counts of public model zoos: ResNet-18 with the small stem and ResNetV2-18,
        # WRN-28-10
        ("preact_resnet18", 11_172_170),
        ("wide_resnet28_10", 36_479_194),
        ("wide_resnet34_10", 46_160_474),  # Zhang et al. 2019 (TRADES) and followers: 46.2 million
    ],
)
def test_the_cifar_networks_have_the_published_parameters(name: str, published: int) -> None:
    model = meta_model(name, num_classes=10, stem="small")
    assert parameters(model) == published
    assert (
        len(activations(model))
        == {"resnet18": 17, "preact_resnet18": 17, "wide_resnet28_10": 25, "wide_resnet34_10": 31}[
            name
        ]
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_with_relu_the_forward_is_torchvisions_bit_for_bit(name: str) -> None:
    plain = torchvision.models.get_model(name, weights=None, num_classes=7)
    ours = build_model(
        name, activation="relu", num_classes=7, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    ours.body.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.train()(x), plain.train()(x))
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_with_silu_an_efficientnet_in_inference_is_torchvisions_bit_for_bit() -> None:
    plain = torchvision.models.efficientnet_b0(weights=None, num_classes=7)
    ours = build_model(
        "efficientnet_b0",
        activation="silu",
        num_classes=7,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    ours.body.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_efficientnets_draw_no_random_number_in_training() -> None:
    model = build_model("efficientnet_b0", activation="silu", num_classes=7, seed=0).train()
    before = torch.random.get_rng_state()
    model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_preactivation_block_computes_what_the_paper_writes() -> None:
    model = build_model("preact_resnet18", activation="gelu", num_classes=10, seed=0).eval()
    block, x = model.body.groups[1][0], torch.rand(1, 64, 8, 8)
    h = F.gelu(block.bn1(x))
    residual = F.conv2d(
        F.gelu(block.bn2(F.conv2d(h, block.conv1.weight, stride=2, padding=1))),
        block.conv2.weight,
        padding=1,
    )
    assert torch.allclose(
        block(x), residual + F.conv2d(h, block.shortcut.weight, stride=2), atol=1e-5
    )
    keeps = model.body.groups[0][0]
    assert keeps.shortcut is None and torch.allclose(
        keeps(x) - x, keeps.conv2(F.gelu(keeps.bn2(keeps.conv1(F.gelu(keeps.bn1(x)))))), atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("small_resnet", sorted(ACTIVATIONS)),
        *((name, ["silu", "smoothrelu_learned"]) for name in ("resnet18", "efficientnet_b0")),
    ],
)
def test_one_seed_gives_every_activation_the_same_initial_weights(
    name: str, others: list[str]
) -> None:
    relu = build_model(name, activation="relu", num_classes=10, stem="small", seed=3).state_dict()
    for activation in others:
        other = build_model(
            name, activation=activation, num_classes=10, stem="small", seed=3
        ).state_dict()
        assert {key for key in other if not key.endswith(".beta")} == set(relu)
        assert all(torch.equal(other[key], value) for key, value in relu.items())


def test_a_seed_leaves_the_global_generator_alone_and_other_seeds_differ() -> None:
    before = torch.random.get_rng_state()
    a, b = (
        build_model("small_resnet", num_classes=10, in_channels=1, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(a.body.conv1.weight, b.body.conv1.weight)


def test_initial_weights_are_torchvisions_own() -> None:
    torch.manual_seed(5)
    plain = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    ours = build_model("resnet18", activation="mish", num_classes=10, seed=5).body.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in plain.items())


def test_normalisation_is_the_first_layer_and_takes_pixels() -> None:
    model = build_model(
        "small_resnet",
        activation="silu",
        num_classes=10,
        mean=(0.1, 0.5, 0.9),
        std=(0.2, 0.3, 0.4),
        seed=0,
    ).eval()
    x = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack(
        [(x[:, c] - m) / s for c, (m, s) in enumerate([(0.1, 0.2), (0.5, 0.3), (0.9, 0.4)])], dim=1
    )
    assert torch.allclose(model(x), model.body(by_hand), atol=1e-6)
    assert {"mean", "std"} <= set(model.state_dict())
    defaults = build_model("resnet18", num_classes=10, seed=0)
    assert defaults.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_the_small_stem_keeps_small_images_large() -> None:
    sizes = {}
    for stem in ("small", "imagenet"):
        model = build_model("resnet18", num_classes=10, in_channels=1, stem=stem, seed=0).eval()
        model.body.layer1.register_forward_hook(
            lambda _m, args, _o, stem=stem: sizes.__setitem__(stem, args[0].shape[-1])
        )
        assert model(torch.rand(1, 1, 32, 32)).shape == (1, 10)
    assert sizes == {"small": 32, "imagenet": 8}


@pytest.mark.parametrize(
    ("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3"), ("small_resnet", "bn2")]
)
def test_zero_gamma_starts_every_block_as_its_shortcut(name: str, last: str) -> None:
    model = build_model(name, num_classes=10, stem="small", zero_gamma=True, seed=0)
    gammas = [getattr(module, last).weight for module in model.modules() if hasattr(module, "act2")]
    assert gammas
    assert all(bool((gamma == 0).all()) for gamma in gammas)


def test_zero_gamma_starts_an_efficientnets_shortcut_blocks_at_zero_and_leaves_the_others() -> None:
    model = build_model("efficientnet_b0", num_classes=10, stem="small", zero_gamma=True, seed=0)
    blocks = [module for module in model.modules() if isinstance(module, MBConv)]
    assert {block.use_res_connect for block in blocks} == {True, False}
    assert all(
        bool((block.block[-1][1].weight == 0).all()) == block.use_res_connect for block in blocks
    )


def test_a_spec_survives_json_and_builds_the_same_model() -> None:
    model = build_model(
        "small_resnet",
        activation="parametric_softplus",
        alpha=5.0,
        num_classes=10,
        in_channels=1,
        width=8,
        seed=0,
    )
    again = model_from_spec(
        ModelSpec(**json.loads(json.dumps(dataclasses.asdict(model.spec)))), seed=0
    )
    assert again.spec == model.spec
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, "model 'resnet81' is unknown; did you mean .*resnet18"),
        ({"name": "resnet26"}, r"model 'resnet26' is unknown; did you mean timm:resnet26\?"),
        ({"name": "q" * 9}, "choose .*module:function.*timm:NAME"),
        ({"name": "convnext_tiny.in12k"}, r"is unknown; did you mean timm:convnext_tiny\?"),
        ({"stem": "smal"}, "did you mean small"),
        ({"activation": "rleu"}, "did you mean .*relu"),
        ({"activation": "softplus", "alpha": 2.0}, "takes no alpha"),
        ({"num_classes": 1}, "num_classes must be a whole number from 2"),
        ({"in_channels": 0}, "in_channels must be a whole number from 1"),
        ({"width": 0}, "width must be a whole number from 1"),
        ({"mean": (0.5,)}, "mean and std must have one number for each of 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be .* a number greater than 0"),
        (
            {"name": "wide_resnet28_10", "zero_gamma": True},
            "zero_gamma must be False for wide_resnet28_10",
        ),
        ({"name": "resnext50_32x8"}, "did you mean .*resnext50_32x8d"),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(**{"name": "small_resnet", "num_classes": 10, "seed": 0, **arguments})


def test_models_come_in_train_mode_and_as_normalized() -> None:
    model = build_model("small_resnet", num_classes=10, in_channels=1, seed=0)
    assert model.training
    assert isinstance(model, Normalized)
    assert "small_resnet" in MODELS


@pytest.mark.parametrize("side", [8, 16, 28, 32])
def test_small_resnet_takes_images_of_any_side_and_halves_them_twice(side: int) -> None:
    model = build_model(
        "small_resnet", activation="silu", num_classes=10, in_channels=1, width=16, seed=0
    ).eval()
    seen = list[tuple[int, ...]]()
    model.body.avgpool.register_forward_pre_hook(
        lambda module, given: seen.append(tuple(given[0].shape))
    )
    logits = model(torch.rand(3, 1, side, side))
    assert logits.shape == (3, 10) and bool(logits.isfinite().all())
    assert seen == [(3, 64, side // 4, side // 4)]
