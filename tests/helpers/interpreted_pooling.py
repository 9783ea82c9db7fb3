"""The pooling kernels against torch, in Triton's interpreter. `test_pooling.py` starts this file
with TRITON_INTERPRET=1: Triton reads that when it is imported.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_ray.evaluation.low_precision.triton_pooling import MaxPool

SHAPES = [(2, 5, 8, 8), (1, 3, 7, 9), (2, 64, 12, 10), (1, 1, 1, 1), (3, 2, 2, 5), (1, 600, 3, 4)]


def images(shape: tuple[int, ...], dtype: torch.dtype, *, ties: bool) -> Tensor:
    """Draw images, channels last; with ties, of few different values."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return ((2 * x).round() if ties else x).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_pooled_images_and_their_gradients_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, ties: bool
) -> None:
    x = images(shape, dtype, ties=ties).requires_grad_()
    exact = x.detach().double().requires_grad_()
    pooled, expected = MaxPool()(x), F.max_pool2d(exact, 3, 2, 1)
    assert torch.equal(pooled.double(), expected)
    along = images(tuple(pooled.shape), dtype, ties=False)
    (found,), (true,) = (
        torch.autograd.grad(pooled, x, along),
        torch.autograd.grad(expected, exact, along.double()),
    )
    torch.testing.assert_close(found, true.to(dtype))
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_nan_is_passed_on_and_a_window_of_minus_infinity_has_a_place() -> None:
    x = torch.randn(1, 2, 6, 6)
    x[0, 0, 2, 2], x[0, 1] = float("nan"), -float("inf")
    torch.testing.assert_close(
        MaxPool()(x), F.max_pool2d(x, 3, 2, 1), equal_nan=True, rtol=0, atol=0
    )
    lowest, along = x[:, 1:].clone().requires_grad_(), torch.randn(1, 1, 3, 3)
    (found,), (true,) = (
        torch.autograd.grad(pool(lowest), lowest, along)
        for pool in (MaxPool(), nn.MaxPool2d(3, 2, 1))
    )
    torch.testing.assert_close(found, true)


def test_any_layout_is_taken() -> None:
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(MaxPool()(x), F.max_pool2d(x, 3, 2, 1))
