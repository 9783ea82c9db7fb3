"""What determines a model but its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from sat_ray.activations.registry import activation_info
from sat_ray.models.architectures.sizes import PREACT, SCALES
from sat_ray.utils.bounds import Bounds, Width, check_fields
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import check_name

TORCHVISION_MODELS = (  # a list, since torchvision takes seconds to import
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
RESNEXTS: dict[
    str, tuple[tuple[int, int, int, int], int, int]
] = {  # blocks in each stage, groups, channels in a group
    "resnext50_32x8d": ((3, 4, 6, 3), 32, 8),
    "resnext152_32x8d": ((3, 8, 36, 3), 32, 8),
}
MODELS = (*TORCHVISION_MODELS, *RESNEXTS, *SCALES, *PREACT, "small_resnet")
STEMS = ("imagenet", "small")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_model_name(name: str, *, field: str) -> None:
    """Raise ValueError where a name is no model and no `module:function` that builds one."""
    if is_reference(name):
        from sat_ray.models.user_defined import read_net

        read_net(name, field=field)
    else:
        check_name(name, MODELS, field=field)


def check_zero_gamma(name: str, zero_gamma: bool) -> None:
    """Raise ValueError where a network has no BatchNorm at the end of its blocks to start at 0."""
    if zero_gamma and name in PREACT:
        raise ValueError(
            f"zero_gamma must be False for {name}, got True: its blocks end in a convolution"
        )
    if zero_gamma and is_reference(name):
        raise ValueError(
            f"zero_gamma must be False for {name}, got True: a user-defined network sets its own "
            "initial weights"
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that determines a model but its weights; it travels in the checkpoint as JSON.

    name: one of `MODELS`, or `module:function` of user-defined code (see
    `sat_ray.models.user_defined`); stem: of residual networks "imagenet" (7 x 7 stride 2 and
    max-pooling) or "small" (3 x 3 stride 1, for images of 32 pixels), of EfficientNets the stride
    of the first convolution, 2 or 1; preact_resnet18, wide_resnet28_10, wide_resnet34_10 and
    small_resnet are made for small images and have no other stem; width: channels of the first
    layer of small_resnet or of an own network that takes it, ignored elsewhere; mean, std: per
    channel in [0, 1] pixels; zero_gamma: start the last BatchNorm of each block with a shortcut at
    0.
    """

    name: str
    activation: str = "relu"
    alpha: float | None = None
    num_classes: Annotated[int, Bounds(2, 1_000_000)] = 10
    in_channels: Annotated[int, Bounds(1, 4096)] = 3
    stem: str = "imagenet"
    width: Width = 16
    mean: Annotated[tuple[float, ...], Bounds(-1e6, 1e6)] = IMAGENET_MEAN
    std: Annotated[tuple[float, ...], Bounds(0, 1e6, above=True)] = IMAGENET_STD
    zero_gamma: bool = False

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            given = getattr(self, field)
            object.__setattr__(self, field, tuple(given) if isinstance(given, list) else given)
        check_fields(self, prefix="")
        check_model_name(self.name, field="model")
        check_name(self.stem, STEMS, field="stem")
        check_zero_gamma(self.name, self.zero_gamma)
        object.__setattr__(self, "alpha", activation_info(self.activation).check_alpha(self.alpha))
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise ValueError(
                f"mean and std must have one number for each of {self.in_channels} channels, "
                f"got {self.mean} and {self.std}"
            )


def require_spread(std: Sequence[float]) -> None:
    """Raise ValueError where a channel is the same number in all training images (std 0)."""
    flat = [channel for channel, one in enumerate(std) if not one > 0]
    if flat:
        raise ValueError(
            f"std must be above 0 in every channel, got {std[flat[0]]:g} in channel {flat[0]}: all "
            "training images have the same value there, so it cannot be standardised; leave the "
            "channel out (an image's alpha channel, for example), or store gray images as one "
            "channel"
        )


def check_attacker_activation(
    activation: str, alpha: float | None, attacker_activation: str, attacker_alpha: float | None
) -> None:
    """Raise ValueError for an attacker whose forward pass is not the model's.

    Its images would be adversarial for another network.

    Raises ValueError naming the legal choices.
    """
    own = activation_info(activation)
    other = activation_info(attacker_activation, field="attacker_activation")
    other_alpha = other.check_alpha(attacker_alpha, field="attacker_alpha")
    if other.name == own.name and (other_alpha == own.check_alpha(alpha) or own.smooth_backward):
        return
    if other.learned:
        raise ValueError(
            f"attacker_activation must not have a learned alpha of its own, got {other.name}; use "
            "it for the model too, or choose another"
        )
    if other.name == own.name or other.forward_name != own.forward_name:
        legal = (
            "relu, relu_smooth_backward"
            if own.forward_name == "relu"
            else f"{own.name} with the same alpha"
        )
        raise ValueError(
            f"attacker_activation must share its forward pass with activation {own.name}, got "
            f"{other.name}; choose {legal}"
        )
