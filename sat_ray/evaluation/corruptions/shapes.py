"""What corruptions are made of: shifted, blurred and resampled images, and clouds.

Everything is elementwise or a gather over one image, so the other images of a batch change no bit.
x: (N, C, H, W) float32 in [0, 1].
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sat_ray.utils.randomness import Randomness

TAPS = 4  # samples along a side of a larger pixel


def places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and the column of every pixel, (1, H, 1) and (1, 1, W) float32."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, dtype=torch.float32, device=x.device)
    columns = torch.arange(width, dtype=torch.float32, device=x.device)
    return rows[None, :, None], columns[None, None, :]


def sampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return x at places between its pixels, bilinear; beyond the border the border's pixels.

    rows, columns: broadcast to (N, H, W), in pixels.
    """
    height, width = x.shape[-2:]
    shape = (len(x), *x.shape[-2:])
    down = rows.clamp(0, height - 1).expand(shape)
    along = columns.clamp(0, width - 1).expand(shape)
    top = down.floor()
    left = along.floor()

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        index = (rows.clamp(max=height - 1) * width + columns.clamp(max=width - 1)).long()
        index = index.flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return x.flatten(2).gather(2, index).view_as(x)

    share_down = (down - top)[:, None]
    share_along = (along - left)[:, None]
    upper = torch.lerp(at(top, left), at(top, left + 1), share_along)
    lower = torch.lerp(at(top + 1, left), at(top + 1, left + 1), share_along)
    return torch.lerp(upper, lower, share_down)


def mean_of(parts: Iterator[tuple[float, Tensor]]) -> Tensor:
    """Return the mean of images with weights, added one by one."""
    weight, image = next(parts)
    total = image * weight
    weights = weight
    for weight, image in parts:
        total = total + image * weight
        weights += weight
    return total / weights


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Return a Gaussian blur of x, cut after three standard deviations; 0 for none."""
    if sigma <= 0:
        return x
    rows, columns = places(x)
    reach = math.ceil(3 * sigma)
    taps = [(math.exp(-((at / sigma) ** 2) / 2), at) for at in range(-reach, reach + 1)]
    along = mean_of((weight, sampled(x, rows, columns + at)) for weight, at in taps)
    return mean_of((weight, sampled(along, rows + at, columns)) for weight, at in taps)


def disk(x: Tensor, radius: float) -> Tensor:
    """Return x blurred by a disk with soft borders. radius: in pixels."""
    rows, columns = places(x)
    reach = math.ceil(radius)
    taps = [
        (min(1.0, radius + 0.5 - math.hypot(down, along)), down, along)
        for down in range(-reach, reach + 1)
        for along in range(-reach, reach + 1)
    ]
    return mean_of(
        (weight, sampled(x, rows + down, columns + along))
        for weight, down, along in taps
        if weight > 0
    )


def motion(x: Tensor, length: float, angle: Tensor) -> Tensor:
    """Return x moved along a line, the start weighing most. length: in pixels; angle: (N,)."""
    rows, columns = places(x)
    steps = max(4, math.ceil(length))
    down = torch.sin(angle)[:, None, None] * length
    along = torch.cos(angle)[:, None, None] * length
    return mean_of(
        (
            math.exp(-2 * (step / steps) ** 2),
            sampled(x, rows + down * (step / steps), columns + along * (step / steps)),
        )
        for step in range(steps + 1)
    )


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Return the middle of x enlarged by a factor."""
    rows, columns = places(x)
    middle = [(side - 1) / 2 for side in x.shape[-2:]]
    return sampled(
        x, middle[0] + (rows - middle[0]) / factor, middle[1] + (columns - middle[1]) / factor
    )


def clouds(x: Tensor, rng: Randomness, *, purpose: str, decay: float) -> Tensor:
    """Return random clouds of the size of x, (N, 1, H, W) from 0 to 1.

    Octaves of smoothed random grids, each of half the cells' size and 1 / decay of the height of
    the one before.
    """
    height, width = x.shape[-2:]
    rows, columns = places(x)
    total = torch.zeros(len(x), 1, height, width, device=x.device)
    for octave in range(math.ceil(math.log2(max(height, width))) + 1):
        cells = 2**octave
        side = cells + 1
        grid = rng.uniform(f"{purpose}/{octave}", (side, side), device=x.device)
        down = rows * cells / height
        along = columns * cells / width
        total = total + _between(grid, down, along)[:, None] / decay**octave
    low = total.amin(dim=(1, 2, 3), keepdim=True)
    high = total.amax(dim=(1, 2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def _between(grid: Tensor, down: Tensor, along: Tensor) -> Tensor:
    """Return values between the nodes of grids (N, S, S) at rows (1, H, 1), columns (1, 1, W)."""
    top = down.floor().long().flatten()
    left = along.floor().long().flatten()
    upper = grid[:, top]
    lower = grid[:, top + 1]
    rows = torch.lerp(upper, lower, (down.flatten() - top)[None, :, None])
    share = (along.flatten() - left)[None, None, :]
    return torch.lerp(rows[:, :, left], rows[:, :, left + 1], share)


def coarse(x: Tensor, share: float) -> Tensor:
    """Return x in fewer, larger pixels, each the mean of its area. share: of a side's pixels."""
    rows, columns = ((((place + 0.5) * share).floor() + 0.5) / share - 0.5 for place in places(x))
    offsets = [((tap + 0.5) / TAPS - 0.5) / share for tap in range(TAPS)]
    return mean_of(
        (1.0, sampled(x, rows + down, columns + along)) for down in offsets for along in offsets
    )
