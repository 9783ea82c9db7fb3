"""Networks of the package timm with a registered activation.

Every activation module becomes an `Activation`: those of attention's MLPs and of
squeeze-and-excitation too. Gates stay as they are (sigmoid, hard sigmoid, tanh, softmax): they
weigh and rectify nothing. timm's argument `act_layer` is not used: not every network takes it, some
do not hand it to all their parts, and NFNets look up numbers by its name. Where a network calls one
module in several places, these share one learned alpha.

Dropout and stochastic depth are off, as in `efficientnet`: a resumed training, or one on another
number of workers, would draw other numbers.

"small" as stem gives the first convolution a stride of 1 and removes a max-pooling behind it;
weights and their names stay.

Every network is tried once in a process, on torch's meta device, where nothing is computed. It is
refused where it has a part that cannot be varied, that draws random numbers, or without a gradient.
"""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat_ray.activations.module import Activation
from sat_ray.models.architectures.shapes_only import shapes_only
from sat_ray.models.architectures.timm_names import PREFIX
from sat_ray.models.injection import inject_activation
from sat_ray.models.spec import ModelSpec
from sat_ray.models.user_defined import check_parts, described
from sat_ray.utils.import_string import first_line

# operations that rectify: outside an `Activation` they would stay when the activation varies
RECTIFIERS = frozenset(
    {"relu", "hardtanh", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "elu"}
    | {"gelu", "silu", "mish", "hardswish", "softplus"}
)
RANDOM = ("bernoulli", "dropout", "rand", "normal", "uniform")  # beginnings of operations' names
OWN_NONLINEARITY = ("EvoNorm", "FilterResponseNormTlu", "InplaceAbn")  # inside a normalisation
POOLS = ("maxpool", "stem.pool", "conv1_pool")  # behind the first convolution
IMAGES = 2  # of the trial batch


class _Gain(nn.Module):
    """Multiply by a constant, as the activations of some NFNets do."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Return gain * x."""
        return x * self.gain


def timm_network(spec: ModelSpec) -> nn.Module:
    """Build a network of timm with the spec's activation, standardised images -> logits.

    Raises ValueError, in one line, where it does not fit the spec or its activation cannot vary.
    """
    _check(replace(spec, activation="relu", alpha=None))
    return _varied(spec)


def first_layer_names(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the first convolutions of a network of timm, usually one."""
    return _stated(net, "first_conv")


def classifier_names(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that make the logits: several where it was distilled."""
    return _stated(net, "classifier")


def _stated(net: nn.Module, field: str) -> tuple[str, ...]:
    config: Any = net.pretrained_cfg
    found: Any = config.get(field) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def first_convolutions(net: nn.Module) -> list[nn.Conv2d]:
    """Return the first convolutions of a network of timm, without layers of another kind."""
    named = dict(net.named_modules())
    found = [named.get(name) for name in first_layer_names(net)]
    return [one for one in found if isinstance(one, nn.Conv2d)]


def _require_whole_patches(convolution: nn.Module, given: tuple[Any, ...]) -> None:
    """Raise ValueError where a layer that cuts images into patches would leave pixels out."""
    assert isinstance(convolution, nn.Conv2d)
    if convolution.stride != convolution.kernel_size:
        return
    for size, patch in zip(given[0].shape[-2:], convolution.kernel_size, strict=True):
        if size % patch:
            raise ValueError(
                f"{size} pixels are no multiple of its patches of {patch}, and it would ignore "
                f"the last {size % patch}"
            )


def _varied(spec: ModelSpec) -> nn.Module:
    net = _created(spec)
    _require_plain_norms(net, spec.name)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "GammaAct":
                gain: Any = child.gamma
                setattr(parent, name, nn.Sequential(nn.ReLU(), _Gain(gain)))
    if spec.stem == "small":
        _small_stem(net, spec.name)
    _drop_nothing(net)
    inject_activation(
        net, activation=spec.activation, alpha=spec.alpha, replaced=_activation_modules()
    )
    return net


def _created(spec: ModelSpec) -> nn.Module:
    """Build the network as timm does; one line where it cannot be built so."""
    import timm

    name = spec.name.removeprefix(PREFIX)
    options: dict[str, Any] = {"num_classes": spec.num_classes, "in_chans": spec.in_channels}
    if spec.patch_size:
        options["patch_size"] = spec.patch_size
    config = timm.get_pretrained_cfg(name)
    if spec.image_size and config is not None and config.fixed_input_size:
        options["img_size"] = spec.image_size
    net: nn.Module = _tried(spec, "built", timm.create_model, name, pretrained=False, **options)
    return net


def _tried(
    spec: ModelSpec, done: str, function: Callable[..., Any], *given: Any, **named: Any
) -> Any:
    """Call the code of a network; whatever it raises becomes a ValueError in one line."""
    try:
        return function(*given, **named)
    except Exception as error:  # of every kind, from the code of hundreds of networks
        size = " x ".join(map(str, reversed(spec.image_size)))
        settings = [
            *([f"images of {size} pixels"] if size else []),
            *([f"patches of {spec.patch_size}"] if spec.patch_size else []),
            *([f"stem {spec.stem}"] if spec.stem != "imagenet" else []),
        ]
        raise ValueError(
            f"model {spec.name} cannot be {done} for {', '.join(settings) or 'its own size'} "
            f"({type(error).__name__}: {first_line(error)}); choose another network, or change "
            "model.patch-size, model.stem or the size of the images"
        ) from None


def _require_plain_norms(net: nn.Module, name: str) -> None:
    """Raise ValueError for normalisations that hold an activation of their own."""
    for module in net.modules():
        kind = type(module).__name__
        if kind.startswith(OWN_NONLINEARITY):
            raise ValueError(
                f"model {name} has an activation of its own inside its normalisation ({kind}), "
                "which cannot be varied; choose another network"
            )


def _small_stem(net: nn.Module, name: str) -> None:
    """Give the first convolutions a stride of 1, and remove the max-pooling behind them."""
    strided = [one for one in first_convolutions(net) if max(one.stride) > 1]
    if not strided or any(one.stride == one.kernel_size for one in strided):
        raise ValueError(
            f"model.stem must be imagenet for {name}, got small: its first layer has no "
            "overlapping stride that could become 1; for smaller patches set model.patch-size"
        )
    for one in strided:
        one.stride = (1, 1)
    for path in POOLS:
        parent, _, last = path.rpartition(".")
        holder = net.get_submodule(parent) if not parent or hasattr(net, parent) else None
        if holder is not None and isinstance(getattr(holder, last, None), nn.Module):
            setattr(holder, last, nn.Identity())


def _drop_nothing(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for rate in ("drop_prob", "drop_rate", "prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


@functools.cache
def _activation_modules() -> tuple[type[nn.Module], ...]:
    """Return torch's and timm's activations that rectify, without those that only gate."""
    from timm.layers import activations, activations_me

    return (
        *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
        *(nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.Softplus),
        *(activations.Swish, activations.Mish, activations.HardSwish, activations.HardMish),
        *(activations.GELU, activations.GELUTanh, activations.QuickGELU),
        *(activations_me.SwishMe, activations_me.MishMe),
        *(activations_me.HardSwishMe, activations_me.HardMishMe),
    )


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the operations of a forward pass that are not inside an `Activation`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self.calls = 0
        self.inside = 0
        for module in net.modules():
            if isinstance(module, Activation):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, module: nn.Module, given: Any) -> None:
        self.inside += 1
        self.calls += 1

    def _leave(self, module: nn.Module, given: Any, made: Any) -> None:
        self.inside -= 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch, and count it."""
        if not self.inside:
            self.found[func._schema.name.partition("::")[2].rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


@functools.cache
def _check(spec: ModelSpec) -> None:
    """Raise ValueError, in one line, where a network cannot be trained with every activation.

    spec: with relu.
    """
    what = f"model {spec.name}"
    with torch.random.fork_rng(devices=[]), shapes_only():
        net = _varied(spec).train()
        check_parts(net, what=what, remedy="choose another network")
        config: Any = net.pretrained_cfg
        size = spec.image_size or config["input_size"][1:]
        x = torch.empty(IMAGES, spec.in_channels, *size)
        for one in first_convolutions(net):
            one.register_forward_pre_hook(_require_whole_patches)
        operations = _Operations(net)
        with operations:
            logits = _tried(spec, "called", net, x)
        _check_operations(operations, what=what)
        if not isinstance(logits, Tensor) or logits.shape != (IMAGES, spec.num_classes):
            raise ValueError(
                f"{what} must return {(IMAGES, spec.num_classes)} logits while it trains, got "
                f"{described(logits)}; choose another network"
            )
        logits.sum().backward()  # type: ignore[no-untyped-call]
    idle = [name for name, one in net.named_parameters() if one.requires_grad and one.grad is None]
    if idle:
        raise ValueError(
            f"{what} has parameters without a gradient ({', '.join(idle[:3])}), for which training "
            "on several workers would wait; choose another network"
        )


def _check_operations(operations: _Operations, *, what: str) -> None:
    fixed = sorted(RECTIFIERS & operations.found.keys())
    if fixed:
        count = sum(operations.found[one] for one in fixed)
        raise ValueError(
            f"{what} calls {', '.join(fixed)} as a function in {count} places, where the "
            "activation cannot be varied; choose another network"
        )
    if not operations.calls:
        raise ValueError(f"{what} has no activation that could be varied; choose another network")
    drawn = sorted(one for one in operations.found if one.startswith(RANDOM))
    if drawn:
        raise ValueError(
            f"{what} draws random numbers while it trains ({', '.join(drawn)}), so that a resumed "
            "training would be another one; choose another network"
        )
