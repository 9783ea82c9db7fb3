"""Progressive resizing: training begins with small images and ends with whole ones.

That saves most of the operations of the first epochs.

    side(e) = start + step * floor( (full - start) e / (ramp E) / step )    for e < ramp E
    side(e) = full                                                          from there on

e: epochs done, of E; full: the shorter side as stored; the longer one shrinks in proportion. This
is the linear ramp of FFCV's ImageNet training (Leclerc et al. 2023), rounded down: with start 160,
full 224, step 32, half of the ramp has 160 pixels and half 192. Images shrink on their device, as
pixels in [0, 1], before they are attacked: so epsilon holds for what the network sees. Validation
and evaluation always see whole images.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from sat_ray.training.settings import SMALLEST_SIDE, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor


def check_resizing(settings: TrainingSettings, shape: Sequence[int]) -> None:
    """Raise ValueError where the first images would not be smaller than the stored ones.

    shape: (C, H, W) of the stored ones.
    """
    _, height, width = shape
    short = min(height, width)
    if settings.resize_start >= short:
        sizes = f"0, or {SMALLEST_SIDE} to {short - 1}" if short > SMALLEST_SIDE else "0"
        raise ValueError(
            f"training.resize_start must be {sizes} for images of {width} x {height}, "
            f"got {settings.resize_start}"
        )


def image_side(settings: TrainingSettings, epoch: int, *, full: int) -> int:
    """Return the shorter side of training images in an epoch, counted from 0.

    full: the shorter side of stored images, in pixels.
    """
    start = settings.resize_start
    step = settings.resize_step
    ramp = Fraction(str(settings.resize_ramp)) * settings.epochs  # exact: 0.55 of 100 epochs are 55
    if not start or epoch >= ramp:
        return full
    return start + step * int((full - start) * epoch // (ramp * step))


def image_shape(
    settings: TrainingSettings, epoch: int, shape: Sequence[int]
) -> tuple[int, int, int]:
    """Return (C, H, W) of training images in an epoch; shape: (C, H, W) of stored ones."""
    channels, height, width = shape
    return (channels, *_shrunk(height, width, image_side(settings, epoch, full=min(height, width))))


def resize(x: "Tensor", side: int) -> "Tensor":
    """Return images whose shorter side is `side`, by bilinear interpolation with antialiasing.

    x: (N, C, H, W) float32 in [0, 1].
    """
    import torch.nn.functional as F  # the settings' checks need no torch

    height, width = x.shape[-2:]
    if side == min(height, width):
        return x
    size = _shrunk(height, width, side)
    smaller = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return smaller.clamp(0, 1)


def _shrunk(height: int, width: int, side: int) -> tuple[int, int]:
    """Return height and width in proportion, rounded half up."""
    short = min(height, width)
    return (2 * height * side + short) // (2 * short), (2 * width * side + short) // (2 * short)
