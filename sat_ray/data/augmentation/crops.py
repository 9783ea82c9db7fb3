"""Crops and flips of training images, in whole batches and on their device.

Crops and flips are a pure function of (seed, epoch, image id).

    crop_flip            pad by PADDING black pixels, cut out the old size anywhere,
                         flip with probability 1/2 (CIFAR)
    resized_crop_flip    cut out a share SCALE of the area at an aspect ratio RATIO,
                         enlarge it to the old size, flip (ImageNet)

The second chooses its rectangle as Szegedy et al. 2015 do (the first of TRIES draws that fits
inside, else the largest centred one) and enlarges bilinearly between pixel centres. Sizes are kept,
so no step of it shrinks an image and nothing needs to be smoothed. Positions and weights are
integers or one float32 operation each: batch, order, worker and device change no bit.
"""

import math

import torch
from torch import Tensor

from sat_ray.data.choices import PADDING
from sat_ray.utils.randomness import Randomness

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10


def augment(images: Tensor, rng: Randomness, *, name: str, epoch: int) -> Tensor:
    """Return changed images of the same shape, type and device.

    images: (N, C, H, W) uint8; rng: of the same N, seed and ids.
    """
    assert images.dtype == torch.uint8, images.dtype
    if name == "none":
        return images
    change = {"crop_flip": _crop_flip, "resized_crop_flip": _resized_crop_flip}[name]
    return change(images, rng, epoch=epoch)


def flips(rng: Randomness, *, epoch: int) -> Tensor:
    """Return which images are flipped, (N,) bool."""
    return rng.below(2, "augment/flip", 1, step=epoch)[:, 0] == 1


def shifts(rng: Randomness, *, epoch: int) -> Tensor:
    """Return where crops of padded images begin, (N, 2) int64.

    The columns are rows and columns from the top left corner of the padding.
    """
    return rng.below(2 * PADDING + 1, "augment/shift", 2, step=epoch)


def rectangles(rng: Randomness, height: int, width: int, *, epoch: int) -> Tensor:
    """Return the parts of images of one size that are enlarged, (N, 4) int64.

    The columns are top, left, height and width.
    """
    tall, wide = sides(
        rng, height, width, purpose="augment/rectangle", scale=SCALE, ratio=RATIO, epoch=epoch
    )
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    found = fits.any(dim=1)
    tall = first_fitting(tall, fits)
    wide = first_fitting(wide, fits)
    room = torch.stack([height - tall, width - wide], dim=1) + 1
    top, left = rng.below(room, "augment/place", 2, step=epoch).unbind(dim=1)
    edges = zip((top, left, tall, wide), _centred(height, width), strict=True)
    return torch.stack([torch.where(found, drawn, centred) for drawn, centred in edges], dim=1)


def sides(
    rng: Randomness,
    height: int,
    width: int,
    *,
    purpose: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Return heights and widths of TRIES random rectangles for each image, (N, TRIES) int64 each.

    scale: share of the image's area, uniform; ratio: width by height, its logarithm uniform.
    """
    draws = rng.uniform(purpose, (TRIES, 2), step=epoch).to(torch.float64)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[..., 0])
    low, high = (math.log(bound) for bound in ratio)
    shape = torch.exp(low + (high - low) * draws[..., 1])
    tall, wide = (torch.sqrt(side).round().long() for side in (area / shape, area * shape))
    return tall, wide


def first_fitting(values: Tensor, fits: Tensor) -> Tensor:
    """Return the value of each image's first try that fits, (N,); values, fits: (N, TRIES)."""
    first = fits.to(torch.int64).argmax(dim=1, keepdim=True)
    return values.gather(1, first)[:, 0]


def _centred(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest rectangle in the middle whose aspect ratio is allowed."""
    tall = min(height, round(width / RATIO[0]))
    wide = min(width, round(height * RATIO[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _crop_flip(images: Tensor, rng: Randomness, *, epoch: int) -> Tensor:
    height, width = images.shape[-2:]
    shift = shifts(rng, epoch=epoch)
    flip = flips(rng, epoch=epoch)
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    rows = shift[:, :1] + torch.arange(height, device=images.device)
    columns = shift[:, 1:] + _columns(width, flip)
    return _at(padded, rows, columns)


def _resized_crop_flip(images: Tensor, rng: Randomness, *, epoch: int) -> Tensor:
    height, width = images.shape[-2:]
    part = rectangles(rng, height, width, epoch=epoch)
    flip = flips(rng, epoch=epoch)
    upper, lower, down = _between(
        torch.arange(height, device=images.device).expand(len(images), -1),
        height,
        part[:, 0],
        part[:, 2],
    )
    left, right, along = _between(_columns(width, flip), width, part[:, 1], part[:, 3])
    along = along[:, None, None, :]
    down = down[:, None, :, None]

    def row(rows: Tensor) -> Tensor:
        one, other = (_at(images, rows, columns).to(torch.float32) for columns in (left, right))
        return one + (other - one) * along

    one = row(upper)
    other = row(lower)
    return (one + (other - one) * down).round().to(torch.uint8)


def _columns(width: int, flip: Tensor) -> Tensor:
    """Return the column that each column of an output shows, (N, W)."""
    columns = torch.arange(width, device=flip.device)
    return torch.where(flip[:, None], columns.flip(0), columns)


def _between(
    places: Tensor, size: int, start: Tensor, length: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels that each place of an enlarged part lies between.

    Returns also the distance of the place from the first of the two. Places are 0 to size - 1.

    Place p is centred over (p + 1/2) length / size - 1/2 of the part, which its first and last
    pixel end. places: (N, size).
    """
    numerator = ((2 * places + 1) * length[:, None] - size).clamp_min(0)  # in units of 1 / (2 size)
    first = numerator // (2 * size)
    second = torch.minimum(first + 1, length[:, None] - 1)
    weight = (numerator - first * 2 * size).to(torch.float32) / (2 * size)
    return start[:, None] + first, start[:, None] + second, weight


def _at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return pixel (rows[n, i], columns[n, j]) of every image n at (i, j)."""
    numbers = torch.arange(len(images), device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[numbers, channels, rows[:, None, :, None], columns[:, None, None, :]]
