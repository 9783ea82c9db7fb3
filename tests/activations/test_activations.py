"""Every activation of the registry against finite differences in float64, its declared smoothness,
and its memory.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sat_ray.activations.registry import (
    ACTIVATIONS,
    ActivationInfo,
    activation_info,
    make_activation,
)

CASES = [
    pytest.param(info, alpha, id=info.name if alpha is None else f"{info.name}-{alpha:g}")
    for info in ACTIVATIONS.values()
    for alpha in (
        (None,)
        if info.alpha is None
        else sorted({info.alpha.default, *info.alpha.grid, 0.1, 1.0, min(300.0, info.alpha.high)})
    )
]
EVERY = pytest.mark.parametrize(("info", "alpha"), CASES)
LEARNED_ALPHA = 400.0


def value_of(info: ActivationInfo, alpha: float | None, x: Tensor) -> Tensor:
    """Evaluate the registry's function at a fixed alpha."""
    return info.function(x, torch.tensor(LEARNED_ALPHA, dtype=x.dtype) if info.learned else alpha)


def slope_of(info: ActivationInfo, alpha: float | None, x: Tensor) -> Tensor:
    """Differentiate the registry's function by autograd, to any order."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    return torch.autograd.grad(value_of(info, alpha, x).sum(), x, create_graph=True)[0]


def central_difference(f: Callable[[Tensor], Tensor], x: Tensor, h: float) -> Tensor:
    """Return the fourth-order central difference of f at x."""
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


def grid(*, gap: float) -> Tensor:
    """Return float64 points from -40 to 40, dense around 0 but none nearer than gap,
    and far ones.
    """
    near = torch.linspace(-3, 3, 241, dtype=torch.float64)
    points = torch.cat(
        [
            near,
            torch.linspace(-40, 40, 81, dtype=torch.float64),
            near * 1e-2,
            torch.tensor([-700.0, 700.0]),
        ]
    )
    return points[points.abs() > gap]


def by_hand(info: ActivationInfo, alpha: float | None, v: float) -> float:
    """Evaluate the formula of sat.md for one number with Python's math alone."""
    a = LEARNED_ALPHA if info.learned else alpha

    def softplus(z: float) -> float:
        return max(z, 0.0) + math.log1p(math.exp(-abs(z)))

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z)) if z > -700 else 0.0

    match info.name:
        case "relu" | "relu_smooth_backward":
            return max(v, 0.0)
        case "parametric_softplus":
            return softplus(a * v) / a
        case "softplus":
            return softplus(v)
        case "silu" | "silu_learned":
            return v * sigmoid(a * v)
        case "gelu" | "gelu_learned":
            return v * 0.5 * math.erfc(-a * v / math.sqrt(2))
        case "elu":
            return v if v >= 0 else a * math.expm1(v)
        case "celu":
            return v if v >= 0 else a * math.expm1(v / a)
        case "smoothrelu" | "smoothrelu_learned":
            return v - math.log1p(a * v) / a if v >= 0 else 0.0
        case "mish":
            return v * math.tanh(softplus(a * v))
    raise AssertionError(f"no formula written here for {info.name}")


@EVERY
def test_the_value_is_the_formulas(info: ActivationInfo, alpha: float | None) -> None:
    x = torch.cat([grid(gap=-1.0), torch.tensor([0.0, 1e-9, -1e-9, 1e4, -1e4])])
    expected = torch.tensor([by_hand(info, alpha, v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(value_of(info, alpha, x), expected, rtol=1e-12, atol=1e-13)


@EVERY
def test_the_first_derivative_is_that_of_finite_differences(
    info: ActivationInfo, alpha: float | None
) -> None:
    h = 1e-4 / max(1.0, (LEARNED_ALPHA if info.learned else alpha or 1.0) / 10)
    x = grid(gap=2.5 * h if info.smoothness < 2 else -1.0)
    forward = activation_info(info.forward_name)
    numeric = central_difference(lambda v: value_of(forward, alpha, v), x, h)
    if info.smooth_backward:
        expected = torch.sigmoid(alpha * x)
        torch.testing.assert_close(numeric, (x > 0).double(), rtol=0, atol=1e-6)
    else:
        expected = numeric
    torch.testing.assert_close(slope_of(info, alpha, x), expected, rtol=0, atol=2e-7)
    torch.testing.assert_close(
        info.derivative(x, LEARNED_ALPHA if info.learned else alpha), expected, rtol=0, atol=2e-7
    )


@EVERY
def test_the_second_derivative_is_that_of_the_first(
    info: ActivationInfo, alpha: float | None
) -> None:
    sharp = max(1.0, LEARNED_ALPHA if info.learned else alpha or 1.0)
    h = 1e-3 / sharp
    x = grid(gap=2.5 * h if info.smoothness < 2 else -1.0).requires_grad_()
    slope = slope_of(info, alpha, x)
    second = torch.autograd.grad(slope.sum(), x)[0] if slope.requires_grad else torch.zeros_like(x)
    numeric = central_difference(
        lambda v: info.derivative(v, LEARNED_ALPHA if info.learned else alpha), x.detach(), h
    )
    torch.testing.assert_close(second, numeric, rtol=1e-6, atol=1e-8 * sharp)


def smoothness_at(info: ActivationInfo, alpha: float | None) -> float:
    """Return the number of continuous derivatives; elu is smooth at alpha = 1 alone."""
    return 0.0 if info.name == "elu" and alpha != 1.0 else info.smoothness


@EVERY
def test_the_declared_smoothness_is_what_the_derivatives_do_at_zero(
    info: ActivationInfo, alpha: float | None
) -> None:
    scale = LEARNED_ALPHA if info.learned else alpha or 1.0
    sharp = max(scale, 1 / scale)  # celu bends faster as alpha shrinks
    h = torch.tensor([1e-6 / sharp], dtype=torch.float64)
    forward = activation_info(
        info.forward_name
    )  # smoothness is about the function that is computed, not its stand-in gradient
    jump = (slope_of(forward, alpha, h) - slope_of(forward, alpha, -h)).abs().item()
    smoothness = smoothness_at(info, alpha)
    assert (jump < 1e-5) if smoothness >= 1 else (jump > 0.05)
    if smoothness >= 1:
        second = [
            torch.autograd.grad(slope_of(info, alpha, p).sum(), p)[0]
            for p in (h.clone().requires_grad_(), (-h).requires_grad_())
        ]
        bend = (second[0] - second[1]).abs().item()
        assert (bend < 1e-4 * sharp) if smoothness >= 2 else (bend > 0.005)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@EVERY
def test_low_precision_is_the_float64_result_rounded(
    info: ActivationInfo, alpha: float | None, dtype: torch.dtype
) -> None:
    x = torch.cat([torch.linspace(-8, 8, 257), torch.tensor([0.0, -30.0, 30.0, 200.0, -200.0])]).to(
        dtype
    )
    eps = torch.finfo(dtype).eps
    exact = value_of(info, alpha, x.double())
    value = value_of(info, alpha, x)
    assert value.dtype == dtype
    phi = (
        x.double().abs().clamp_min(1) if info.name == "gelu" else 1.0
    )  # x Phi(x): kernels know Phi, not its tail, to a rounding
    assert ((value.double() - exact).abs() <= 2 * eps * (exact.abs() + phi)).all()
    off_zero = x != 0  # where a one-sided derivative is a matter of convention
    slope = slope_of(info, alpha, x)
    assert slope.dtype == dtype
    exact_slope = info.derivative(x.double(), LEARNED_ALPHA if info.learned else alpha)
    torch.testing.assert_close(
        slope.double()[off_zero], exact_slope[off_zero], rtol=4 * eps, atol=4 * eps
    )


@EVERY
def test_autograd_agrees_with_the_derivative_at_zero_where_there_is_one(
    info: ActivationInfo, alpha: float | None
) -> None:
    if smoothness_at(info, alpha) >= 1 or info.smooth_backward:
        zero = torch.zeros(1, dtype=torch.float64)
        torch.testing.assert_close(
            slope_of(info, alpha, zero),
            info.derivative(zero, LEARNED_ALPHA if info.learned else alpha),
        )


@EVERY
def test_no_activation_saves_more_than_one_tensor_for_the_backward_pass(
    info: ActivationInfo, alpha: float | None
) -> None:
    saved: dict[int, int] = {}
    x = torch.randn(4, 256, requires_grad=True)
    module = make_activation(info.name, alpha=alpha)

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    assert sum(size for size in saved.values() if size > 1) == x.numel()
    if info.name.startswith("smoothrelu") or info.smooth_backward:
        assert x.data_ptr() in saved


@pytest.mark.parametrize(
    ("name", "alpha"),
    [("parametric_softplus", 0.0), ("parametric_softplus", -1.0), ("parametric_softplus", math.inf),
     ("elu", math.nan), ("celu", 1e9),
     ("silu", 0.0), ("mish", -1.0), ("relu", 1.0), ("smoothrelu_learned", 5.0),
     ("silu_learned", 1.0)],
)  # fmt: skip
def test_an_alpha_outside_its_range_is_refused_by_name(name: str, alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha must be .*{name}"):
        make_activation(name, alpha=alpha)


def test_an_unknown_activation_is_answered_with_the_closest_names() -> None:
    with pytest.raises(ValueError, match=r"activation 'swilu' is unknown; did you mean .*silu"):
        make_activation("swilu")
    with pytest.raises(ValueError, match=r"choose .*gelu.*silu"):
        make_activation("0123456789")


def test_every_entry_is_complete_and_its_grid_is_legal() -> None:
    for name, info in ACTIVATIONS.items():
        assert name == info.name
        assert info.formula
        assert info.derivative_formula
        assert info.reference
        assert activation_info(info.forward_name).forward_name == info.forward_name
        for alpha in info.alpha.grid if info.alpha else ():
            assert info.check_alpha(alpha) == alpha
