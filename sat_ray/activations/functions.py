"""The arithmetic of the activations that torch does not have, and the derivatives of those it has.

    parametric_softplus  f(x) = log(1 + exp(alpha x)) / alpha   f'(x) = sigmoid(alpha x)
    smoothrelu           f(x) = x - log(alpha x + 1) / alpha    f'(x) = alpha x / (1 + alpha x)
                         for x >= 0, else 0
    silu, gelu, mish     f(x) = x g(alpha x)                    f'(x) = g(t) + t g'(t), t = alpha x
                         g(t) = sigmoid(t), Phi(t), tanh(log(1 + exp(t)))

All of them are f(x) = f_1(alpha x) / alpha: alpha is the sharpness, and relu is the limit of a
large one. silu, gelu and mish are computed as x g(alpha x), which neither overflows nor loses
digits at any alpha.

Functions take (x, alpha): x of any shape and float dtype; alpha a float, a learned scalar tensor,
or None.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Alpha = float | Tensor | None
Function = Callable[[Tensor, Alpha], Tensor]
# F.softplus is linear above beta * x = threshold: the neglected exp(-50) is below float64 rounding
_SOFTPLUS_THRESHOLD = 50.0

# the largest alpha x of smoothrelu: beyond it the result is that of infinity, and nothing overflows
_LARGEST = 1e30
# beyond it the gates of silu, gelu and mish are 0 or 1, and their slopes 0, in float64 too
_FAR = 1e3


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _SmoothRelu(torch.autograd.Function):
    """Compute smoothrelu saving its input alone, as the built-in activations do.

    alpha may be a learned scalar tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha)
        r = _widen(x).clamp_min(0)
        return (r - torch.log1p((alpha * r).clamp_max(_LARGEST)) / alpha).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, alpha = ctx.saved_tensors
        grad = _widen(grad_outputs[0])
        r = _widen(x).clamp_min(0)
        u = (alpha * r).clamp_max(_LARGEST)
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad * u / (1 + u)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_alpha = (grad * (torch.log1p(u) - u / (1 + u)) / alpha**2).sum().to(alpha.dtype)
        return grad_x, grad_alpha


def _sigmoid_gate(t: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(t)
    return gate, gate * (1 - gate)


def _normal_gate(t: Tensor) -> tuple[Tensor, Tensor]:
    return _normal_cdf(t), torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(t: Tensor) -> Tensor:
    return 0.5 * torch.erfc(t * -math.sqrt(0.5))  # 1 + erf would cancel in the tail


def _mish_value(t: Tensor) -> Tensor:
    return torch.tanh(F.softplus(t, threshold=_SOFTPLUS_THRESHOLD))


def _mish_gate(t: Tensor) -> tuple[Tensor, Tensor]:
    gate = _mish_value(t)
    return gate, (1 - gate * gate) * torch.sigmoid(t)


_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.sigmoid,
    "gelu": _normal_cdf,
    "mish": _mish_value,
}
_GATES_AND_SLOPES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _sigmoid_gate,
    "gelu": _normal_gate,
    "mish": _mish_gate,
}
_BUILT_IN: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "mish": F.mish}
_KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # (gradient, t) -> gradient f_1'(t)
    "silu": torch.ops.aten.silu_backward.default,
    "gelu": torch.ops.aten.gelu_backward.default,
    "mish": torch.ops.aten.mish_backward.default,
}


class _Gated(torch.autograd.Function):
    """Compute x g(alpha x) saving its input alone, as torch's own activations do.

    alpha: a scalar tensor, perhaps learned; kind: of `_GATES`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(x, alpha)
        ctx.kind = kind
        wide = _widen(x)
        return (wide * _GATES[kind](alpha * wide)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, alpha = ctx.saved_tensors
        grad = _widen(grad_outputs[0])
        wide = _widen(x)
        t = (alpha * wide).clamp(-_FAR, _FAR)
        again = torch.is_grad_enabled()  # torch's kernels have no derivative of their own
        if not (again or ctx.needs_input_grad[1]):
            return _KERNELS[ctx.kind](grad, t).to(x.dtype), None, None
        gate, slope = _GATES_AND_SLOPES[ctx.kind](t)
        grad_x = grad_alpha = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad * (gate + t * slope)).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_alpha = (grad * (wide * (wide * slope))).sum().to(alpha.dtype)
        return grad_x, grad_alpha, None


class _BuiltIn(torch.autograd.Function):
    """Compute torch's own GELU or Mish, whose second derivative is NaN at large inputs there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind = kind
        return _BUILT_IN[kind](x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return _KERNELS[ctx.kind](grad_outputs[0], x), None
        slope = _gated_slope(_widen(x), 1.0, ctx.kind)
        return (_widen(grad_outputs[0]) * slope).to(x.dtype), None


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
    """Return an alpha that is a float."""
    assert isinstance(alpha, float)
    return alpha


def _scalar(alpha: Alpha, x: Tensor) -> Tensor:
    if isinstance(alpha, Tensor):
        return alpha
    return torch.full((), number(alpha), dtype=_widen(x).dtype, device=x.device)


def smoothrelu(x: Tensor, alpha: Alpha) -> Tensor:
    """Return x - log(alpha x + 1) / alpha for x >= 0, else 0."""
    value: Tensor = _SmoothRelu.apply(x, _scalar(alpha, x))
    return value


def silu(x: Tensor, alpha: Alpha) -> Tensor:
    """Return x sigmoid(alpha x); at alpha = 1 it is torch's SiLU bit for bit."""
    return _gated(x, alpha, "silu")


def gelu(x: Tensor, alpha: Alpha) -> Tensor:
    """Return x Phi(alpha x); at alpha = 1 it is torch's GELU bit for bit."""
    return _gated(x, alpha, "gelu")


def mish(x: Tensor, alpha: Alpha) -> Tensor:
    """Return x tanh(log(1 + exp(alpha x))); at alpha = 1 it is torch's Mish bit for bit."""
    return _gated(x, alpha, "mish")


def _gated(x: Tensor, alpha: Alpha, kind: str) -> Tensor:
    value: Tensor
    if isinstance(alpha, Tensor) or number(alpha) != 1.0:
        value = _Gated.apply(x, _scalar(alpha, x), kind)
    elif kind == "silu":
        value = F.silu(x)
    else:
        value = _BuiltIn.apply(x, kind)
    return value


def relu_smooth_backward(x: Tensor, alpha: Alpha) -> Tensor:
    """Return relu, whose backward pass is that of parametric_softplus."""
    value: Tensor = _ReluSmoothBackward.apply(x, number(alpha))
    return value


def smoothrelu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return alpha x / (1 + alpha x) for x >= 0, else 0."""
    assert alpha is not None
    u = (alpha * x.clamp_min(0)).clamp_max(_LARGEST)
    return u / (1 + u)


def silu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return the derivative of `silu`."""
    return _gated_slope(x, alpha, "silu")


def gelu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return the derivative of `gelu`."""
    return _gated_slope(x, alpha, "gelu")


def mish_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return the derivative of `mish`."""
    return _gated_slope(x, alpha, "mish")


def _gated_slope(x: Tensor, alpha: Alpha, kind: str) -> Tensor:
    assert alpha is not None
    t = (alpha * x).clamp(-_FAR, _FAR)
    gate, slope = _GATES_AND_SLOPES[kind](t)
    return gate + t * slope


def softplus(x: Tensor, alpha: Alpha) -> Tensor:
    """Return log(1 + exp(alpha x)) / alpha."""
    return F.softplus(x, beta=number(alpha), threshold=_SOFTPLUS_THRESHOLD)


def softplus_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return sigmoid(alpha x)."""
    return torch.sigmoid(number(alpha) * x)


def elu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return 1 for x >= 0, alpha exp(x) below."""
    below = number(alpha) * torch.exp(x.clamp_max(0))
    return torch.where(x >= 0, torch.ones_like(x), below)


def celu_slope(x: Tensor, alpha: Alpha) -> Tensor:
    """Return 1 for x >= 0, exp(x / alpha) below."""
    below = torch.exp(x.clamp_max(0) / number(alpha))
    return torch.where(x >= 0, torch.ones_like(x), below)


FUNCTIONS: dict[str, Function] = {
    "relu": lambda x, alpha: F.relu(x),
    "parametric_softplus": softplus,
    "softplus": lambda x, alpha: softplus(x, 1.0),
    "silu": silu,
    "silu_learned": silu,
    "gelu": gelu,
    "gelu_learned": gelu,
    "elu": lambda x, alpha: F.elu(x, alpha=number(alpha)),
    "celu": lambda x, alpha: F.celu(x, alpha=number(alpha)),
    "smoothrelu": smoothrelu,
    "smoothrelu_learned": smoothrelu,
    "mish": mish,
    "relu_smooth_backward": relu_smooth_backward,
}
"""The function of every registered activation, by its name."""
SLOPES: dict[str, Function] = {
    "relu": lambda x, alpha: (x > 0).to(x.dtype),
    "parametric_softplus": softplus_slope,
    "softplus": lambda x, alpha: torch.sigmoid(x),
    "silu": silu_slope,
    "silu_learned": silu_slope,
    "gelu": gelu_slope,
    "gelu_learned": gelu_slope,
    "elu": elu_slope,
    "celu": celu_slope,
    "smoothrelu": smoothrelu_slope,
    "smoothrelu_learned": smoothrelu_slope,
    "mish": mish_slope,
    "relu_smooth_backward": softplus_slope,
}
"""The derivative of each; of relu_smooth_backward that of the backward pass."""
