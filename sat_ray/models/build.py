"""Models by name: residual networks, EfficientNets, networks for small images, and timm's."""

import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from sat_ray.activations.registry import make_activation
from sat_ray.models.architectures.preact_resnet import PreActResNet
from sat_ray.models.architectures.shapes_only import shapes_only
from sat_ray.models.architectures.sizes import PREACT, SCALES
from sat_ray.models.architectures.small_resnet import SmallResNet
from sat_ray.models.architectures.timm_names import is_timm
from sat_ray.models.injection import inject_activation
from sat_ray.models.normalized import Normalized
from sat_ray.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from sat_ray.models.user_defined import ALLOWED, check_net, check_sizes, read_net
from sat_ray.models.view import view
from sat_ray.utils.import_string import call, is_reference, resolve


def _small_net(spec: ModelSpec) -> nn.Module:
    net = SmallResNet(num_classes=spec.num_classes, in_channels=spec.in_channels, width=spec.width)
    if spec.zero_gamma:
        for block in (net.layer1, net.layer2, net.layer3):
            nn.init.zeros_(block.bn2.weight)
    return net


def _efficient_net(spec: ModelSpec) -> nn.Module:
    from sat_ray.models.architectures.efficientnet import (  # imports torchvision
        efficientnet,
        zero_last_gammas,
    )

    width, depth, _ = SCALES[spec.name]
    net: nn.Module = efficientnet(
        width=width,
        depth=depth,
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
        stem=spec.stem,
    )
    if spec.zero_gamma:
        zero_last_gammas(net)
    return net


def _preact_net(spec: ModelSpec) -> nn.Module:
    stem, widths, blocks = PREACT[spec.name]
    return PreActResNet(
        stem=stem,
        widths=widths,
        blocks=blocks,
        num_classes=spec.num_classes,
        in_channels=spec.in_channels,
    )


def _net(spec: ModelSpec) -> nn.Module:
    """Build the network of a spec; those of users and of timm come with its activation."""
    if is_reference(spec.name):
        return user_defined_net(spec)
    if is_timm(spec.name):
        from sat_ray.models.architectures.timm_network import timm_network  # imports timm

        return timm_network(spec)
    if spec.name in SCALES:
        return _efficient_net(spec)
    if spec.name in PREACT:
        return _preact_net(spec)
    if spec.name == "small_resnet":
        return _small_net(spec)
    from sat_ray.models.architectures.torchvision_resnet import residual_net  # imports torchvision

    return residual_net(spec)


def model_from_spec(spec: ModelSpec, *, seed: int | None = None) -> Normalized:
    """Build the model that a spec describes, in train mode, float32, on the CPU.

    seed: makes the initial weights a pure function of (spec without activation, seed) and leaves
    torch's global generator alone; None draws from the global generator.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        net = _net(spec)
    if not (is_reference(spec.name) or is_timm(spec.name)):
        inject_activation(net, activation=spec.activation, alpha=spec.alpha)
    return Normalized(net, mean=spec.mean, std=spec.std, spec=spec)


def misfit(spec: ModelSpec, weights: Mapping[str, Tensor]) -> str:
    """Return which of the weights is not that of the network of a spec; "" where none is.

    No memory is taken for the network: a description of a few bytes may name one of many
    gigabytes. User-defined networks are not compared, because not every one can be made so.
    """
    if is_reference(spec.name):
        return ""
    with shapes_only():
        # An activation adds single numbers only, and a user-defined one may need real tensors.
        outline = model_from_spec(replace(spec, activation="relu", alpha=None), seed=0)
    for name, wanted in outline.state_dict().items():
        if name not in weights:
            return f"there is no {name}"
        if (found := weights[name].shape) != wanted.shape:
            return f"{name} must have the shape {tuple(wanted.shape)}, got {tuple(found)}"
    return ""


@functools.cache
def check_user_defined_model(
    spec: ModelSpec, shape: tuple[int, ...], smaller: tuple[tuple[int, ...], ...] = ()
) -> None:
    """Raise ValueError, in one line, where a user-defined network cannot be trained.

    shape: (C, H, W) of the images; smaller: of those that training begins with, where it resizes
    them.
    """
    check_net(
        lambda seed: model_from_spec(spec, seed=seed),
        name=spec.name,
        num_classes=spec.num_classes,
        shape=shape,
    )
    model = model_from_spec(spec, seed=0).eval()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    logits = model(x)
    # the attacker's view is in inference mode while the model trains
    if not torch.equal(view(model.train())(x), logits):
        raise ValueError(
            f"model {spec.name} must have parts that are modules or plain values, got a reference "
            "to itself (a bound method?)"
        )
    check_sizes(model, name=spec.name, num_classes=spec.num_classes, shapes=smaller)


def check_timm_model(spec: ModelSpec, smaller: tuple[tuple[int, ...], ...] = ()) -> None:
    """Raise ValueError, in one line, where a network of timm cannot be trained on its images.

    Nothing is computed. smaller: (C, H, W) of smaller images that training begins with.
    """
    with shapes_only():
        model = model_from_spec(spec, seed=0)
    check_sizes(model, name=spec.name, num_classes=spec.num_classes, shapes=smaller)


def build_model(
    name: str,
    *,
    activation: str = "relu",
    alpha: float | None = None,
    num_classes: int,
    in_channels: int = 3,
    stem: str = "imagenet",
    width: int = 16,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    zero_gamma: bool = False,
    image_size: tuple[int, ...] = (),
    patch_size: int = 0,
    seed: int | None = None,
) -> Normalized:
    """Build a model by name with an activation injected; [0, 1] pixels -> logits.

    See `ModelSpec` for the fields.

    mean, std: ImageNet's for three channels, else 0.5 and 0.25. Raises ValueError on unknown names
    or values out of range.
    """
    rgb = in_channels == 3
    spec = ModelSpec(
        name=name,
        activation=activation,
        alpha=alpha,
        num_classes=num_classes,
        in_channels=in_channels,
        stem=stem,
        width=width,
        mean=mean or (IMAGENET_MEAN if rgb else (0.5,) * in_channels),
        std=std or (IMAGENET_STD if rgb else (0.25,) * in_channels),
        zero_gamma=zero_gamma,
        image_size=image_size,
        patch_size=patch_size,
    )
    return model_from_spec(spec, seed=seed)


def user_defined_net(spec: "ModelSpec") -> nn.Module:
    """Build a user-defined network; ValueError where its function fails or returns another type."""
    taken = read_net(spec.name, field="model")
    offered = {
        "num_classes": spec.num_classes,
        "activation": lambda: make_activation(spec.activation, alpha=spec.alpha),
        "in_channels": spec.in_channels,
        "width": spec.width,
    }
    function = resolve(spec.name, what="model")
    net = call(
        function,
        what=f"model {spec.name}",
        **{one: value for one, value in offered.items() if taken[one]},
    )
    if not isinstance(net, nn.Module):
        raise ValueError(f"model {spec.name} must be {ALLOWED}; it returned a {type(net).__name__}")
    return net
