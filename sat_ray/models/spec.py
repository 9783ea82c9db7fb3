"""What determines a model but its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from sat_ray.activations.registry import activation_info
from sat_ray.models.architectures.sizes import PREACT, SCALES
from sat_ray.models.architectures.timm_names import as_timm_name, check_timm_name, is_timm
from sat_ray.utils.bounds import Bounds, Width, check_fields
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import check_name
from sat_ray.utils.serialization import fields_in_use

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
OTHER_MODELS = ("timm:NAME", "module:function")  # forms of a name, for messages
STEMS = ("imagenet", "small")
PatchSize = Annotated[int, Bounds(0, 4096)]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_model_name(name: str, *, field: str) -> None:
    """Raise ValueError where a name is no model and no `module:function` that builds one."""
    if is_timm(name):
        check_timm_name(name, field=field)
    elif is_reference(name):
        from sat_ray.models.user_defined import read_net

        read_net(name, field=field)
    elif name not in MODELS and (known := as_timm_name(name)):
        raise ValueError(f"{field} {name!r} is unknown; did you mean {known}?")
    else:
        check_name(name, (*MODELS, *OTHER_MODELS), field=field)


def check_zero_gamma(name: str, zero_gamma: bool) -> None:
    """Raise ValueError where a network has no BatchNorm at the end of its blocks to start at 0."""
    if zero_gamma and name in PREACT:
        raise ValueError(
            f"zero_gamma must be False for {name}, got True: its blocks end in a convolution"
        )
    if zero_gamma and (is_reference(name) or is_timm(name)):
        kind = "network of timm" if is_timm(name) else "user-defined network"
        raise ValueError(
            f"zero_gamma must be False for {name}, got True: a {kind} sets its own initial weights"
        )


def check_patch_size(name: str, patch_size: int) -> None:
    """Raise ValueError where a network other than timm's shall have patches of another size."""
    if patch_size and not is_timm(name):
        raise ValueError(
            f"patch_size must be 0 for {name}, got {patch_size}: only networks of timm "
            "(timm:NAME) that cut images into patches have one"
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that determines a model but its weights; it travels in the checkpoint as JSON.

    name: one of `MODELS`, `timm:NAME`, or `module:function` of user-defined code (see
    `sat_ray.models.user_defined`); stem: of residual networks "imagenet" (7 x 7 stride 2 and
    max-pooling) or "small" (3 x 3 stride 1, for images of 32 pixels), of EfficientNets the stride
    of the first convolution, 2 or 1, of timm's networks see `architectures.timm_network`;
    preact_resnet18, wide_resnet28_10, wide_resnet34_10 and small_resnet are made for small images
    and have no other stem; width: channels of the first layer of small_resnet or of an own network
    that takes it, ignored elsewhere; mean, std: per channel in [0, 1] pixels; zero_gamma: start the
    last BatchNorm of each block with a shortcut at 0; image_size: (H, W) of the images, for
    networks of timm that are built for one size, () for the size that timm builds them for;
    patch_size: side of the patches of a network of timm, 0 for its own.
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
    image_size: Annotated[tuple[int, ...], Bounds(1, 65_536)] = ()
    patch_size: PatchSize = 0

    def __post_init__(self) -> None:
        for field in ("mean", "std", "image_size"):
            given = getattr(self, field)
            object.__setattr__(self, field, tuple(given) if isinstance(given, list) else given)
        check_fields(self, prefix="")
        check_model_name(self.name, field="model")
        check_name(self.stem, STEMS, field="stem")
        check_zero_gamma(self.name, self.zero_gamma)
        check_patch_size(self.name, self.patch_size)
        object.__setattr__(self, "alpha", activation_info(self.activation).check_alpha(self.alpha))
        if not len(self.mean) == len(self.std) == self.in_channels:
            raise ValueError(
                f"mean and std must have one number for each of {self.in_channels} channels, "
                f"got {self.mean} and {self.std}"
            )
        if len(self.image_size) not in (0, 2):
            raise ValueError(f"image_size must be (height, width) or (), got {self.image_size}")

    def described(self) -> dict[str, Any]:
        """Return the fields as JSON values, without those of timm's networks where they are unset.

        So the keys and checkpoints of other networks are what they were before these fields.
        """
        return fields_in_use(self, added={"image_size", "patch_size"})


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
