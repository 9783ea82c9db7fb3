"""How training images are loaded and changed, by name; `loading` and `augmentation` do it."""

from collections.abc import Sequence
from typing import Literal

Loading = Literal["auto", "resident", "streaming"]
AUGMENTATIONS = ("none", "crop_flip", "resized_crop_flip")
PADDING = 4
# side of an image: a crop keeps half of it or more, and 8 % of the area is at least a pixel
SMALLEST = 2 * PADDING


def check_augmentation(name: str, shape: Sequence[int]) -> None:
    """Raise ValueError where images are too small to be cut. shape: (C, H, W)."""
    _, height, width = shape
    if name != "none" and min(height, width) < SMALLEST:
        raise ValueError(
            f"training.augmentation must be none for images of {width} x {height}, got {name}: "
            f"crops need sides of {SMALLEST} pixels"
        )
