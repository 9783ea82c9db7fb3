"""The arithmetic of the activations that torch does not have, and the derivatives of those it has.

    parametric_softplus  f(x) = log(1 + exp(alpha x)) / alpha      f'(x) = sigmoid(alpha x)
    smoothrelu           f(x) = x - log(alpha x + 1) / alpha       f'(x) = alpha x / (1 + alpha x)      for x >= 0, else 0

Functions take (x, alpha): x of any shape and float dtype; alpha a float, a learned scalar tensor, or None.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Alpha = float | Tensor | None
_SOFTPLUS_THRESHOLD = 50.0  # F.softplus is linear above beta * x = threshold; at 50 the neglected exp(-50) is below float64 rounding


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _SmoothRelu(torch.autograd.Function):
    """Compute smoothrelu saving its input alone, as the built-in activations do; alpha may be a learned scalar tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        r = _widen(x).clamp_min(0)
        return (r - torch.log1p(alpha * r) / alpha).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, alpha = ctx.saved_tensors
        grad = _widen(grad_outputs[0])
        r = _widen(x).clamp_min(0)
        u = alpha * r
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad * u / (1 + u)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_alpha = (grad * (torch.log1p(u) - u / (1 + u)) / alpha**2).sum().to(alpha.dtype)
        return grad_x, grad_alpha


class _ReluSmoothBackward(torch.autograd.Function):
    """Pass relu forward and the derivative of parametric softplus backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return F.relu(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (grad_outputs[0] * torch.sigmoid(ctx.alpha * _widen(x))).to(x.dtype), None


def number(alpha: Alpha) -> float:
    assert isinstance(alpha, float)
    return alpha


def smoothrelu(x: Tensor, alpha: Alpha) -> Tensor:
    scalar = alpha if isinstance(alpha, Tensor) else torch.full((), number(alpha), dtype=_widen(x).dtype, device=x.device)
    value: Tensor = _SmoothRelu.apply(x, scalar)
    return value


def relu_smooth_backward(x: Tensor, alpha: Alpha) -> Tensor:
    value: Tensor = _ReluSmoothBackward.apply(x, number(alpha))
    return value


def smoothrelu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    assert alpha is not None
    u = alpha * x.clamp_min(0)
    return u / (1 + u)


def silu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    s = torch.sigmoid(x)
    return s + x * s * (1 - s)


def gelu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    slope: Tensor = torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return slope


def mish_slope(x: Tensor, alpha: Alpha) -> Tensor:
    t = torch.tanh(F.softplus(x, threshold=_SOFTPLUS_THRESHOLD))
    return t + x * (1 - t * t) * torch.sigmoid(x)


def softplus(x: Tensor, alpha: Alpha) -> Tensor:
    return F.softplus(x, beta=number(alpha), threshold=_SOFTPLUS_THRESHOLD)
