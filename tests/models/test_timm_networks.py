"""Networks of timm: any activation in them, as many parameters as timm's own, small images, views,
checkpoints and files of torch.export; what cannot vary its activation is refused by name.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.checkpoint import load_model, save_model
from sat_ray.models import ModelSpec, Normalized, assert_shares_storage, build_model, view
from sat_ray.models.architectures.timm_names import require_timm, timm_names
from sat_ray.models.export import export_model
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ModelSettings

# of a convolution per stage to windows of attention; how many activations timm gives each
PLACES = {
    "resnet18": 17,
    "resnet26d": 27,
    "resnetv2_18": 17,
    "seresnext26d_32x4d": 35,
    "convnext_atto": 12,
    "vit_tiny_patch16_224": 12,
    "swin_tiny_patch4_window7_224": 12,
    "efficientnetv2_rw_t": 99,
    "nfnet_f0": 64,
    "dm_nfnet_f0": 64,
    "regnety_002": 53,
    "mobilenetv3_small_050": 33,
    "densenet121": 121,
    "mixer_s32_224": 16,
    "xcit_nano_12_p8_224": 28,
    "mambaout_femto": 20,
}
SMALL: dict[str, dict[str, Any]] = {  # networks that timm made for its own tests, on digits
    "test_vit": {"patch_size": 2},
    "test_convnext": {"patch_size": 1},
    "test_resnet": {"stem": "small"},
    "test_efficientnet": {"stem": "small"},
}


def small(name: str, activation: str = "silu", **choices: Any) -> Normalized:
    """Build a tiny network for the digits."""
    options = {"num_classes": 10, "in_channels": 1, "mean": (0.3,), "std": (0.35,)}
    made = SMALL[name] | {"image_size": (8, 8)} | choices
    return build_model(f"timm:{name}", activation=activation, seed=0, **options, **made)


def images(count: int = 4) -> Tensor:
    """Return the same random digits every time."""
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def refusal(name: str, **choices: Any) -> str:
    """Return why a network is refused, which must be said in one line."""
    with pytest.raises(ValueError) as caught:
        build_model(f"timm:{name}", activation="silu", num_classes=10, seed=0, **choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PLACES)
def test_a_network_has_timms_parameters_and_an_activation_at_every_place(name: str) -> None:
    with torch.device("meta"):
        ours = build_model(f"timm:{name}", activation="smoothrelu", num_classes=10, seed=0).body
        theirs = timm.create_model(name, pretrained=False, num_classes=10)
    assert {path: one.shape for path, one in ours.named_parameters()} == {
        path: one.shape for path, one in theirs.named_parameters()
    }
    made = [one for one in ours.modules() if isinstance(one, Activation)]
    assert len(made) == PLACES[name] and {one.activation for one in made} == {"smoothrelu"}


def test_names_are_read_without_importing_timm_and_are_those_of_timm() -> None:
    assert timm_names(require_timm(what="a test")) == set(timm.list_models())


@pytest.mark.parametrize("name", SMALL)
def test_a_learned_alpha_is_one_per_activation_and_gets_a_gradient(name: str) -> None:
    model = small(name, "smoothrelu_learned")
    model(images()).square().sum().backward()
    betas = [one.beta for one in model.modules() if isinstance(one, Activation)]
    assert len({id(beta) for beta in betas}) == len(betas) > 4
    assert all(beta.grad is not None for beta in betas)
    assert any(float(beta.grad.abs()) > 0 for beta in betas if beta.grad is not None)


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_do_not_depend_on_the_activation_and_draw_nothing_from_outside(
    name: str,
) -> None:
    before = torch.get_rng_state()
    one, other = (small(name, activation).state_dict() for activation in ("relu", "gelu"))
    assert all(torch.equal(one[key], other[key]) for key in one) and one.keys() == other.keys()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", SMALL)
def test_the_attackers_view_shares_weights_and_computes_the_same(name: str) -> None:
    model = small(name, "relu").train()
    attacker = view(model, "relu_smooth_backward")
    assert_shares_storage(model, attacker)
    assert torch.equal(attacker(images()), model.eval()(images()))
    x = images().requires_grad_()
    smooth, plain = (
        torch.autograd.grad(net(x).square().sum(), x)[0] for net in (attacker, view(model))
    )
    assert not torch.equal(smooth, plain)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "focalnet_tiny_srf"])
def test_nothing_is_dropped_at_random_while_training(name: str) -> None:
    drops = [one for one in timm.create_model(name).modules() if hasattr(one, "drop_prob")]
    assert any(one.drop_prob for one in drops), "timm itself would drop paths of this network"
    with torch.device("meta"):
        net = build_model(f"timm:{name}", activation="silu", num_classes=10, seed=0)
    assert not any(getattr(one, "drop_prob", 0) for one in net.modules())


def test_a_small_stem_keeps_the_weights_and_halves_nothing() -> None:
    options: dict[str, Any] = {"num_classes": 10, "activation": "silu", "seed": 0}
    usual = build_model("timm:resnet18", **options)
    small_stem = build_model("timm:resnet18", stem="small", **options)
    shapes = [
        {key: one.shape for key, one in net.state_dict().items()} for net in (usual, small_stem)
    ]
    assert shapes[0] == shapes[1]
    features = small_stem.body.forward_features(torch.rand(1, 3, 32, 32))  # type: ignore[operator]
    assert features.shape[2:] == (4, 4)  # three stages halve the image


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_checkpoint_and_an_exported_file_give_the_same_logits(name: str, tmp_path: Path) -> None:
    model = small(name, "parametric_softplus").eval()
    assert model.spec is not None
    save_model(Storage.at(tmp_path), model.state_dict(), spec=model.spec, about={})
    again = load_model(str(tmp_path))
    assert again.spec == model.spec and torch.equal(again(images()), model(images()))
    for kind in ("pt2", "onnx") if name == "test_vit" else ("pt2",):
        data, parity = export_model(model, shape=(1, 8, 8), kind=kind)
        assert data and parity.logits <= parity.bound


def test_other_networks_are_described_as_before_timm() -> None:
    fields = ModelSpec(name="resnet18").described()
    assert "image_size" not in fields and "patch_size" not in fields and fields["alpha"] is None


def test_what_cannot_vary_is_refused_by_name() -> None:
    assert "timm:mobilevitv2_050 calls relu as a function in 9 places" in refusal("mobilevitv2_050")
    assert "EvoNorm2dS0" in refusal("resnetv2_50d_evos")


def test_what_cannot_be_trained_as_it_is_is_refused_with_what_to_do() -> None:
    said = refusal("coat_mini")
    assert said.endswith("uses one module at several places; choose another network")
    said = refusal("gemma4_vit_167m_enc")
    assert "(2, 10) logits while it trains, got a tensor of shape (2, 256, 768); choose an" in said


def test_what_does_not_fit_small_images_is_refused_by_name() -> None:
    said = refusal("test_vit", image_size=(8, 8), patch_size=3)
    assert "images of 8 x 8 pixels, patches of 3" in said and "model.patch-size" in said
    assert "unexpected keyword argument 'patch_size'" in refusal("test_resnet", patch_size=2)
    assert "model.stem must be imagenet for timm:test_vit" in refusal("test_vit", stem="small")
    for name in ("vit_tiny_patch16_224", "test_convnext"):
        patch = 16 if name.startswith("vit") else 4
        said = refusal(name, image_size=(30, 30))
        rest = f"no multiple of its patches of {patch}, and it would ignore the last {30 % patch}"
        assert rest in said
    assert "patch_size must be 0 for resnet18" in _refused(name="resnet18", patch_size=2)
    assert "zero_gamma must be False" in _refused(name="timm:resnet18", zero_gamma=True)


def test_unknown_names_are_answered_with_the_closest() -> None:
    assert "timm:convnext_tny is unknown to timm; did you mean convnext_tiny" in _refused(
        name="timm:convnext_tny"
    )
    assert "timm.list_models()" in _refused(name="timm:zzzzzzzz")
    tagged = _refused(name="timm:resnet18.a1_in1k")
    assert "--model.initial-weights timm:a1_in1k" in tagged


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    # Python itself says that a module of None cannot be found
    said = _refused(name="timm:resnet18")
    assert "timm, which is not installed: pip install 'sat_ray[timm]'" in said


def _refused(**settings: Any) -> str:
    with pytest.raises(ValueError) as caught:
        ModelSettings(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gates_stay() -> None:
    with torch.device("meta"):
        net = build_model("timm:mobilenetv3_small_050", activation="silu", num_classes=10, seed=0)
    gates = [one for one in net.modules() if isinstance(one, nn.Hardsigmoid)]
    assert len(gates) == 9
