"""The entries of the activation registry: each adds one activation everywhere.

That is to models, search space, help of the command line, tables and tests; its arithmetic is in
`sat_ray.activations.functions`.

    sharpness    f_alpha(x) = f(alpha x) / alpha    parametric_softplus, silu, gelu, ...
    curvature    max over x of |f''(x)|             of f_alpha it is alpha times that of f

`alpha` is the sharpness of the activation and nothing else. A large alpha gives relu; a small one
gives x / 2 (smoothrelu: 0). Two names keep torch's own alpha: celu's is 1 / sharpness, and elu's
is the depth below zero, where the derivative jumps at 0 unless alpha is 1.
Sources: Xie et al. 2020 (arXiv 2006.14536) unless an entry says otherwise.
"""

import math
from collections.abc import Callable

from sat_ray.activations.info import ActivationInfo, AlphaRange


def _times_alpha(of_one: float) -> Callable[[float | None], float]:
    """Return the curvature of f(alpha x) / alpha. of_one: that of f."""
    return lambda alpha: of_one * _number(alpha)


def _number(alpha: float | None) -> float:
    assert alpha is not None
    return alpha


def _always(value: float) -> Callable[[float | None], float]:
    return lambda alpha: value


_SOFTPLUS_CURVATURE = 0.25  # at x = 0
_SILU_CURVATURE = 0.5  # at x = 0
_GELU_CURVATURE = math.sqrt(2 / math.pi)  # at x = 0
_MISH_CURVATURE = 0.6442046372369727  # at x = -0.0879344312, found numerically
_SMALLEST = 1e-3
_LARGEST = 1e6
_GRID = (0.25, 1.0, 4.0, 16.0, 64.0)  # from nearly linear to nearly relu

_ENTRIES = (
    ActivationInfo(
        name="relu",
        formula="max(x, 0)",
        derivative_formula="1 for x > 0, else 0",
        smoothness=0,
        curvature=_always(math.inf),
        reference="baseline",
    ),
    ActivationInfo(
        name="parametric_softplus",
        formula="log(1 + exp(alpha x)) / alpha",
        derivative_formula="sigmoid(alpha x)",
        smoothness=math.inf,
        curvature=_times_alpha(_SOFTPLUS_CURVATURE),
        reference="Xie et al. 2020, section 4.1; alpha = 10 there",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 10.0, (2.5, 10.0, 40.0, 160.0)),
    ),
    ActivationInfo(
        name="softplus",
        formula="log(1 + exp(x))",
        derivative_formula="sigmoid(x)",
        smoothness=math.inf,
        curvature=_always(_SOFTPLUS_CURVATURE),
        reference="Xie et al. 2020, released code; parametric_softplus at alpha = 1",
    ),
    ActivationInfo(
        name="silu",
        formula="x sigmoid(alpha x)",
        derivative_formula="s + alpha x s (1 - s), s = sigmoid(alpha x)",
        smoothness=math.inf,
        curvature=_times_alpha(_SILU_CURVATURE),
        reference="Xie et al. 2020: at alpha = 1 the most robust of its activations",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 1.0, _GRID, unsaid=True),
    ),
    ActivationInfo(
        name="silu_learned",
        formula="silu with alpha = beta**2, beta learned per layer from 1",
        derivative_formula="s + alpha x s (1 - s), s = sigmoid(alpha x)",
        smoothness=math.inf,
        curvature=_times_alpha(_SILU_CURVATURE),
        reference="Dai et al. 2021 (arXiv 2110.05626) learn a parametric SiLU; "
        "no weight decay on beta",
        beta_start=1.0,
    ),
    ActivationInfo(
        name="gelu",
        formula="x Phi(alpha x)",
        derivative_formula="Phi(alpha x) + alpha x phi(alpha x)",
        smoothness=math.inf,
        curvature=_times_alpha(_GELU_CURVATURE),
        reference="Hendrycks and Gimpel 2016; the SAT release uses its tanh approximation",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 1.0, _GRID, unsaid=True),
    ),
    ActivationInfo(
        name="gelu_learned",
        formula="gelu with alpha = beta**2, beta learned per layer from 1",
        derivative_formula="Phi(alpha x) + alpha x phi(alpha x)",
        smoothness=math.inf,
        curvature=_times_alpha(_GELU_CURVATURE),
        reference="as silu_learned; no weight decay on beta",
        beta_start=1.0,
    ),
    ActivationInfo(
        name="elu",
        formula="x for x >= 0, alpha (exp(x) - 1) below",
        derivative_formula="1 for x >= 0, alpha exp(x) below",
        smoothness=1,
        curvature=lambda alpha: 1.0 if alpha == 1.0 else math.inf,
        reference="Clevert et al. 2015; smooth at alpha = 1 alone",
        alpha=AlphaRange(1e-3, 100.0, 1.0, (0.5, 1.0, 2.0)),
    ),
    ActivationInfo(
        name="celu",
        formula="x for x >= 0, alpha (exp(x / alpha) - 1) below",
        derivative_formula="1 for x >= 0, exp(x / alpha) below",
        smoothness=1,
        curvature=lambda alpha: 1.0 / _number(alpha),
        reference="Barron 2017; smooth for every alpha, which is 1 / sharpness",
        alpha=AlphaRange(1e-3, 100.0, 1.0, (0.0625, 0.25, 1.0, 4.0)),
    ),
    ActivationInfo(
        name="smoothrelu",
        formula="x - log(alpha x + 1) / alpha for x >= 0, else 0",
        derivative_formula="alpha x / (1 + alpha x) for x >= 0, else 0",
        smoothness=1,
        curvature=_times_alpha(1.0),
        reference="Xie et al. 2020, equation 5",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 10.0, (2.5, 10.0, 40.0, 160.0)),
    ),
    ActivationInfo(
        name="smoothrelu_learned",
        formula="smoothrelu with alpha = beta**2, beta learned per layer from 20",
        derivative_formula="alpha x / (1 + alpha x) for x >= 0, else 0",
        smoothness=1,
        curvature=_times_alpha(1.0),
        reference="Xie et al. 2020, released code; no weight decay on beta",
        beta_start=20.0,
    ),
    ActivationInfo(
        name="mish",
        formula="x tanh(log(1 + exp(alpha x)))",
        derivative_formula="g + alpha x (1 - g**2) sigmoid(alpha x), g = f(x) / x",
        smoothness=math.inf,
        curvature=_times_alpha(_MISH_CURVATURE),
        reference="Misra 2019",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 1.0, _GRID, unsaid=True),
    ),
    ActivationInfo(
        name="relu_smooth_backward",
        formula="max(x, 0)",
        derivative_formula="sigmoid(alpha x), in the backward pass only",
        smoothness=0,
        curvature=_always(math.inf),
        reference="Xie et al. 2020, section 3: the gradient-quality experiment (Table 1)",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 10.0, (10.0,)),
        forward_of="relu",
    ),
)
ACTIVATIONS: dict[str, ActivationInfo] = {info.name: info for info in _ENTRIES}
"""Every registered activation by its name."""
