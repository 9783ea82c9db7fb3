"""What every family of networks must do: any activation, a gradient for the attacker, views,
layouts, checkpoints, export.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from thin_networks import thin_networks, without_draws
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.checkpoint import load_model, save_model
from sat_ray.models import (
    MODELS,
    Normalized,
    assert_shares_storage,
    build_model,
    model_from_spec,
    settle_layout,
    view,
)
from sat_ray.models.architectures.efficientnet import efficientnet
from sat_ray.models.architectures.preact_resnet import PreActResNet
from sat_ray.models.export import exportable
from sat_ray.models.injection import inject_activation
from sat_ray.storage.store import Storage

FAMILIES = (
    "efficientnet_b0",
    "preact_resnet18",
)  # torchvision's residual networks have their own tests
MINIATURES = {
    "efficientnet": lambda: efficientnet(width=0.25, depth=0.1, num_classes=5),
    "preact": lambda: PreActResNet(stem=8, widths=(8, 16), blocks=1, num_classes=5, in_channels=3),
}


def images(count: int = 2, size: int = 32) -> Tensor:
    """Return the same random images every time."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Return the summed cross-entropy, in the precision of the images."""
    return F.cross_entropy(model(x), torch.arange(len(x)), reduction="sum")


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """Return what an attacker differentiates."""
    point = x.clone().requires_grad_()
    return torch.autograd.grad(loss(model, point), point)[0]


def with_statistics(net: Normalized) -> Normalized:
    """Give BatchNorm the statistics of some images, so that an untrained network neither fades nor
    explodes in inference mode.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(images(8).to(net.mean.dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def miniature(family: str, activation: str) -> Normalized:
    """Build a small network of a family."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MINIATURES[family]()
    places = sum(isinstance(module, (nn.ReLU, nn.SiLU)) for module in net.modules())
    assert (
        inject_activation(net, activation=activation)
        == places
        == {"efficientnet": 22, "preact": 5}[family]
    )
    return Normalized(net, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Normalized:
    """Build one network of each family with small images in mind; tests must not change it."""
    return with_statistics(
        build_model(request.param, activation="relu", num_classes=5, stem="small", seed=0)
    )


LINEAR = {
    *("conv2d", "batch_norm", "linear", "add", "add_", "sub", "div", "mul"),
    *("flatten", "dim", "__get__", "adaptive_avg_pool2d"),
}
OTHERS = {
    "resne": {"max_pool2d"},
    "efficientnet": {"sigmoid", "dropout"},
}  # pooling; gates, which weigh channels; no share is dropped


class Watch(TorchFunctionMode):
    """Note the activation modules that images pass, and what is called outside of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.called, self.passed, self.inside = set[str](), list[nn.Module](), False
        for module in model.modules():
            if isinstance(module, Activation):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.passed.append(module)
        self.inside = True

    def _leave(self, *_: Any) -> None:
        self.inside = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do what is asked for."""
        if not self.inside:
            self.called.add(function.__name__)
        return function(*args, **(kwargs or {}))


def assert_passes_its_activation_alone(name: str, activation: str, x: Tensor) -> None:
    """Assert that images get from a network to logits through each activation module once, all of
    them the right one, and no other.
    """
    with x.device:
        model = build_model(name, activation=activation, num_classes=7)
    with torch.no_grad(), Watch(model) as watch:
        logits = model(x)
    assert logits.shape == (len(x), 7) and (logits.is_meta or bool(logits.isfinite().all()))
    made, info = (
        [module for module in model.modules() if isinstance(module, Activation)],
        ACTIVATIONS[activation],
    )
    assert len(made) >= 5 and len(watch.passed) == len(made) and set(watch.passed) == set(made)
    for one in made:
        assert (one.activation, one.function, one.alpha, one.learned) == (
            activation,
            info.function,
            info.check_alpha(None),
            info.learned,
        )
    allowed = next((others for family, others in OTHERS.items() if family in name), set())
    assert watch.called <= LINEAR | allowed, (
        "something that is not linear was called outside of the activation modules"
    )
    left = {
        type(module) for module in model.modules() if type(module).__module__ == nn.ReLU.__module__
    }
    assert left <= ({nn.Sigmoid} if "sigmoid" in allowed else set())


WITH_ACTIVATION = [
    *((name, "gelu") for name in MODELS),  # no network comes with it
    *((name, one) for name in ("resnet18", *FAMILIES) for one in ACTIVATIONS if one != "gelu"),
]


@pytest.mark.parametrize(("name", "activation"), WITH_ACTIVATION)
def test_every_model_has_a_forward_and_every_family_one_with_every_activation(
    name: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin_networks(monkeypatch)
    without_draws(monkeypatch)
    assert_passes_its_activation_alone(name, activation, images())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_forward_at_full_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_draws(monkeypatch)
    monkeypatch.setattr(
        F, "batch_norm", lambda x, *_, **__: x
    )  # on the meta device nine tenths of the time
    other = (
        "relu" if name.startswith("efficientnet") else "silu"
    )  # than what the network comes with
    assert_passes_its_activation_alone(name, other, images().to("meta"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("family", MINIATURES)
def test_every_activation_works_in_every_family_and_gives_the_attacker_its_gradient(
    family: str, activation: str
) -> None:
    net = with_statistics(miniature(family, activation).double())
    x = images().double()
    slope = gradient(net, x)
    assert (
        slope.shape == (2, 3, 32, 32)
        and bool(slope.isfinite().all())
        and slope.abs().amax(dim=(1, 2, 3)).min() > 0
    )
    if ACTIVATIONS[activation].smoothness > 0:  # the slope along itself, by differences
        step = 1e-5 / slope.norm() * slope
        with torch.no_grad():
            difference = loss(net, x + step) - loss(net, x - step)
        assert (difference / 2e-5).item() == pytest.approx(slope.norm().item(), rel=1e-4)


def test_a_view_shares_memory_and_forward_and_changes_the_gradient(model: Normalized) -> None:
    attacked = view(model, "relu_smooth_backward", alpha=1.0)
    assert_shares_storage(model, attacked)
    assert sum(isinstance(m, Activation) for m in attacked.modules()) == sum(
        isinstance(m, Activation) for m in model.modules()
    )
    assert torch.equal(attacked(images()), model(images()))
    assert not torch.allclose(
        gradient(attacked, images()), gradient(model, images()), rtol=0.1, atol=0
    )
    assert model.spec is not None and all(
        m.activation == "relu" for m in model.modules() if isinstance(m, Activation)
    )


def test_a_settled_layout_changes_no_answer_beyond_rounding(model: Normalized) -> None:
    assert model.spec is not None
    other = model_from_spec(model.spec, seed=1).eval()
    other.load_state_dict(model.state_dict())
    settle_layout(other)
    torch.testing.assert_close(other(images()), model(images()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradient(view(other), images()), gradient(model, images()), rtol=1e-3, atol=1e-6
    )


def test_a_checkpoint_comes_back_as_it_was_saved(model: Normalized, tmp_path: Path) -> None:
    assert model.spec is not None
    save_model(Storage.at(tmp_path), model.state_dict(), spec=model.spec, about={})
    loaded = load_model(str(tmp_path))
    assert loaded.spec == model.spec
    assert torch.equal(loaded(images()), model(images()))


@pytest.mark.parametrize("family", MINIATURES)
def test_an_exported_network_gives_the_same_logits_and_gradients_at_any_batch_size(
    family: str,
) -> None:
    net = with_statistics(miniature(family, "smoothrelu_learned"))
    if (
        family == "efficientnet"
    ):  # tracing all of it takes long: the stem and two blocks hold every kind of layer
        features = net.body.features
        net.body = nn.Sequential(
            features[0],
            features[1],
            features[2],
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    net = exportable(net)
    program = torch.export.export(
        net, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    ).module()
    for count in (2, 5):
        x = images(count)
        torch.testing.assert_close(program(x), net(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(program, x), gradient(net, x), rtol=1e-4, atol=1e-7)
