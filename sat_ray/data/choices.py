"""How training images are loaded and changed, by name; `loading` and `augmentation` do it."""

from collections.abc import Sequence
from typing import Literal

Loading = Literal["auto", "resident", "streaming"]
AUGMENTATIONS = ("none", "crop_flip", "resized_crop_flip")
PADDING = 4
# side of an image: a crop keeps half of it or more, and 8 % of the area is at least a pixel
SMALLEST = 2 * PADDING
STRONGEST = 30  # magnitude of RandAugment


def extra_images(share: float, group_size: int) -> int:
    """Return how many images of a BatchNorm group are extra.

    Raises ValueError unless there is at least one of either kind.
    """
    found = round(share * group_size)
    if not 0 < found < group_size:
        raise ValueError(
            "data.extra_share must give at least one extra image and one other to each BatchNorm "
            f"group of {group_size}, got {share:g}"
        )
    return found


def check_extra_count(images: int, *, needed: int) -> None:
    """Raise ValueError where extra images do not fill their share of one global batch."""
    if images < needed:
        raise ValueError(
            f"data.extra must have at least {needed} training images, those of one global batch, "
            f"got {images}; use a smaller data.extra_share"
        )


def check_augmentation(name: str, shape: Sequence[int], *, randaugment: int = 0) -> None:
    """Raise ValueError where images are too small to be cut, or have no colours that can change.

    shape: (C, H, W); randaugment: operations.
    """
    channels, height, width = shape
    if randaugment and channels not in (1, 3):
        raise ValueError(
            f"training.randaugment must be 0 for images of {channels} channels, got {randaugment}: "
            "its operations are for gray and RGB images"
        )
    if name != "none" and min(height, width) < SMALLEST:
        raise ValueError(
            f"training.augmentation must be none for images of {width} x {height}, got {name}: "
            f"crops need sides of {SMALLEST} pixels"
        )
