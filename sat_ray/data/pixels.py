"""The one place that divides by 255: images are uint8 until they are on the device."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def to_pixels(images: "Tensor") -> "Tensor":
    """Turn (N, C, H, W) uint8 into float32 in [0, 1], on the same device."""
    import torch

    assert images.dtype == torch.uint8, images.dtype
    return images.to(torch.float32) / 255.0


def too_dark(brightest: int, *, what: str) -> str:
    """Return why images without a pixel above 1 are refused: most likely they were scaled."""
    return (
        f"{what} must have pixels from 0 to 255, got none above {brightest}; multiply images in "
        "[0, 1] by 255"
    )
