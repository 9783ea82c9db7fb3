"""Max pooling of 3 x 3 places with stride 2, as networks for ImageNet have it once, in Triton, for compiled copies on a GPU.

torch.compile spreads the gradient by additions in memory and passes over the images four times. Here the forward pass keeps in 8 bits which
of the nine places was the largest, and the backward pass gathers: each block of 2 x 2 pixels asks the four windows that it lies in. One
pass over the images each, and sums of at most four numbers in an order that never changes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.library import triton_op, wrap_triton

BLOCK = 512  # entries of a row of windows that one program handles
GEOMETRY = {
    "kernel_size": 3,
    "stride": 2,
    "padding": 1,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}


@triton.jit
def _largest(x, out, taken, height, width, channels, rows, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the largest of nine places and which one it is; of equal ones the first, and NaN above all, as torch does."""
    row = tl.program_id(0).to(tl.int64)
    image, top = row // rows, row % rows * 2 - 1
    entry = tl.program_id(1) * block + tl.arange(0, block)
    held = entry < columns * channels
    left, channel = entry // channels * 2 - 1, entry % channels
    best = tl.full((block,), float("-inf"), tl.float32)
    place = tl.full((block,), -1, tl.int32)
    for number in tl.static_range(9):
        above, before = top + number // 3, left + number % 3
        inside = held & (above >= 0) & (above < height) & (before >= 0) & (before < width)
        value = tl.load(
            x + (image * height + above) * width * channels + before * channels + channel,
            inside,
            other=0.0,
        ).to(tl.float32)
        better = inside & ((value > best) | (value != value) | (place < 0))
        best = tl.where(better, value, best)
        place = tl.where(better, number, place)
    target = row * columns * channels + entry
    tl.store(out + target, best.to(out.dtype.element_ty), held)
    tl.store(taken + target, place.to(tl.int8), held)


@triton.jit
def _window(gradient, taken, offset, held):  # type: ignore[no-untyped-def]
    return tl.load(gradient + offset, held, other=0.0).to(tl.float32), tl.load(
        taken + offset, held, other=-1
    ).to(tl.int32)


@triton.jit
def _gather(gradient, taken, out, height, width, channels, rows, columns, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write a block of 2 x 2 pixels: each pixel's sum over the windows that chose it."""
    row = tl.program_id(0).to(tl.int64)
    image, line = row // rows, row % rows
    entry = tl.program_id(1) * block + tl.arange(0, block)
    held = entry < columns * channels
    column, channel = entry // channels, entry % channels
    right, below = held & (column + 1 < columns), line + 1 < rows
    here = row * columns * channels + entry
    under = here + columns * channels
    a, in_a = _window(gradient, taken, here, held)
    b, in_b = _window(gradient, taken, here + channels, right)
    c, in_c = _window(gradient, taken, under, held & below)
    d, in_d = _window(gradient, taken, under + channels, right & below)
    first = out + (image * height + 2 * line) * width * channels + 2 * column * channels + channel
    wide, tall = held & (2 * column + 1 < width), 2 * line + 1 < height
    kind = out.dtype.element_ty
    upper = tl.where(in_a == 5, a, 0.0) + tl.where(in_b == 3, b, 0.0)
    lower = tl.where(in_a == 7, a, 0.0) + tl.where(in_c == 1, c, 0.0)
    corner = (
        tl.where(in_a == 8, a, 0.0)
        + tl.where(in_b == 6, b, 0.0)
        + tl.where(in_c == 2, c, 0.0)
        + tl.where(in_d == 0, d, 0.0)
    )
    tl.store(first, tl.where(in_a == 4, a, 0.0).to(kind), held)
    tl.store(first + channels, upper.to(kind), wide)
    tl.store(first + width * channels, lower.to(kind), held & tall)
    tl.store(first + width * channels + channels, corner.to(kind), wide & tall)


def _grid(rows: int, entries: int) -> tuple[int, int]:
    return rows, triton.cdiv(entries, BLOCK)


@triton_op("sat_ray::max_pool", mutates_args={})
def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of every 3 x 3 places around every second pixel, and which of the nine it is, int8.

    x: (N, C, H, W); both results (N, C, ceil(H / 2), ceil(W / 2)), channels last.
    """
    images, channels, height, width = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x[:, :, :rows, :columns], memory_format=torch.channels_last)
    taken = torch.empty_like(out, dtype=torch.int8, memory_format=torch.channels_last)
    grid = _grid(images * rows, columns * channels)
    wrap_triton(_largest)[grid](x, out, taken, height, width, channels, rows, columns, block=BLOCK)
    return out, taken


@triton_op("sat_ray::max_pool_gradient", mutates_args={})
def max_pool_gradient(gradient: Tensor, taken: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient at the images (N, C, H, W) of `max_pool`, from that at its results and the places that it took."""
    images, channels, rows, columns = gradient.shape
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    out = torch.empty(
        (images, channels, height, width),
        dtype=gradient.dtype,
        device=gradient.device,
        memory_format=torch.channels_last,
    )
    grid = _grid(images * rows, columns * channels)
    wrap_triton(_gather)[grid](
        gradient, taken, out, height, width, channels, rows, columns, block=BLOCK
    )
    return out


def _remember(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.side = inputs[0].shape[2:]


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> Tensor:
    (taken,) = ctx.saved_tensors
    found: Tensor = max_pool_gradient(gradient, taken, *ctx.side)
    return found


max_pool.register_autograd(_backward, setup_context=_remember)


class MaxPool(nn.Module):
    """`nn.MaxPool2d(3, stride=2, padding=1)` by these kernels."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W)."""
        pooled: Tensor = max_pool(x)[0]
        return pooled


def with_own_pooling(model: nn.Module) -> nn.Module:
    """Give a model on a GPU these kernels wherever it has that pooling as a module, in place, and return it."""
    for name, module in list(model.named_modules()):
        if (
            name
            and type(module) is nn.MaxPool2d
            and all(_same(getattr(module, field), value) for field, value in GEOMETRY.items())
        ):
            model.set_submodule(name, MaxPool())
    return model


def _same(found: Any, expected: int | bool) -> bool:
    return bool(found == (expected, expected) if isinstance(found, tuple) else found == expected)
