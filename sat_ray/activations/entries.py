"""The entries of the registry: one adds an activation to everything else.

Sources: Xie et al. 2020 (arXiv 2006.14536) unless an entry names another one.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sat_ray.activations import functions
from sat_ray.activations.info import ActivationInfo, AlphaRange


def _times_alpha(of_one: float) -> Callable[[float | None], float]:
    """Return the curvature of f(alpha x) / alpha. of_one: that of f."""
    return lambda alpha: of_one * functions.number(alpha)


def _always(value: float) -> Callable[[float | None], float]:
    return lambda alpha: value


_SOFTPLUS_CURVATURE = 0.25  # at x = 0
_SILU_CURVATURE = 0.5  # at x = 0
_GELU_CURVATURE = math.sqrt(2 / math.pi)  # at x = 0
_MISH_CURVATURE = 0.6442046372369727  # at x = -0.0879344312, found numerically
_SMALLEST = 1e-3
_LARGEST = 1e6
_GRID = (0.25, 1.0, 4.0, 16.0, 64.0)  # from nearly linear to nearly relu

ENTRIES = (
    ActivationInfo(
        name="relu",
        formula="max(x, 0)",
        derivative_formula="1 for x > 0, else 0",
        function=lambda x, alpha: F.relu(x),
        derivative=lambda x, alpha: (x > 0).to(x.dtype),
        smoothness=0,
        curvature=_always(math.inf),
        reference="baseline",
    ),
    ActivationInfo(
        name="parametric_softplus",
        formula="log(1 + exp(alpha x)) / alpha",
        derivative_formula="sigmoid(alpha x)",
        function=functions.softplus,
        derivative=lambda x, alpha: torch.sigmoid(functions.number(alpha) * x),
        smoothness=math.inf,
        curvature=_times_alpha(_SOFTPLUS_CURVATURE),
        reference="Xie et al. 2020, section 4.1; alpha = 10 there",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 10.0, (2.5, 10.0, 40.0, 160.0)),
    ),
    ActivationInfo(
        name="softplus",
        formula="log(1 + exp(x))",
        derivative_formula="sigmoid(x)",
        function=lambda x, alpha: functions.softplus(x, 1.0),
        derivative=lambda x, alpha: torch.sigmoid(x),
        smoothness=math.inf,
        curvature=_always(_SOFTPLUS_CURVATURE),
        reference="Xie et al. 2020, released code; parametric_softplus at alpha = 1",
    ),
    ActivationInfo(
        name="silu",
        formula="x sigmoid(alpha x)",
        derivative_formula="s + alpha x s (1 - s), s = sigmoid(alpha x)",
        function=functions.silu,
        derivative=functions.silu_slope,
        smoothness=math.inf,
        curvature=_times_alpha(_SILU_CURVATURE),
        reference="Xie et al. 2020: at alpha = 1 the most robust of its activations",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 1.0, _GRID, unsaid=True),
    ),
    ActivationInfo(
        name="silu_learned",
        formula="silu with alpha = beta**2, beta learned per layer from 1",
        derivative_formula="s + alpha x s (1 - s), s = sigmoid(alpha x)",
        function=functions.silu,
        derivative=functions.silu_slope,
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
        function=functions.gelu,
        derivative=functions.gelu_slope,
        smoothness=math.inf,
        curvature=_times_alpha(_GELU_CURVATURE),
        reference="Hendrycks and Gimpel 2016; the SAT release uses its tanh approximation",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 1.0, _GRID, unsaid=True),
    ),
    ActivationInfo(
        name="gelu_learned",
        formula="gelu with alpha = beta**2, beta learned per layer from 1",
        derivative_formula="Phi(alpha x) + alpha x phi(alpha x)",
        function=functions.gelu,
        derivative=functions.gelu_slope,
        smoothness=math.inf,
        curvature=_times_alpha(_GELU_CURVATURE),
        reference="as silu_learned; no weight decay on beta",
        beta_start=1.0,
    ),
    ActivationInfo(
        name="elu",
        formula="x for x >= 0, alpha (exp(x) - 1) below",
        derivative_formula="1 for x >= 0, alpha exp(x) below",
        function=lambda x, alpha: F.elu(x, alpha=functions.number(alpha)),
        derivative=lambda x, alpha: torch.where(
            x >= 0, torch.ones_like(x), functions.number(alpha) * torch.exp(x.clamp_max(0))
        ),
        smoothness=1,
        curvature=lambda alpha: 1.0 if alpha == 1.0 else math.inf,
        reference="Clevert et al. 2015; smooth at alpha = 1 alone",
        alpha=AlphaRange(1e-3, 100.0, 1.0, (0.5, 1.0, 2.0)),
    ),
    ActivationInfo(
        name="celu",
        formula="x for x >= 0, alpha (exp(x / alpha) - 1) below",
        derivative_formula="1 for x >= 0, exp(x / alpha) below",
        function=lambda x, alpha: F.celu(x, alpha=functions.number(alpha)),
        derivative=lambda x, alpha: torch.where(
            x >= 0, torch.ones_like(x), torch.exp(x.clamp_max(0) / functions.number(alpha))
        ),
        smoothness=1,
        curvature=lambda alpha: 1.0 / functions.number(alpha),
        reference="Barron 2017; smooth for every alpha, which is 1 / sharpness",
        alpha=AlphaRange(1e-3, 100.0, 1.0, (0.0625, 0.25, 1.0, 4.0)),
    ),
    ActivationInfo(
        name="smoothrelu",
        formula="x - log(alpha x + 1) / alpha for x >= 0, else 0",
        derivative_formula="alpha x / (1 + alpha x) for x >= 0, else 0",
        function=functions.smoothrelu,
        derivative=functions.smoothrelu_slope,
        smoothness=1,
        curvature=_times_alpha(1.0),
        reference="Xie et al. 2020, equation 5",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 10.0, (2.5, 10.0, 40.0, 160.0)),
    ),
    ActivationInfo(
        name="smoothrelu_learned",
        formula="smoothrelu with alpha = beta**2, beta learned per layer from 20",
        derivative_formula="alpha x / (1 + alpha x) for x >= 0, else 0",
        function=functions.smoothrelu,
        derivative=functions.smoothrelu_slope,
        smoothness=1,
        curvature=_times_alpha(1.0),
        reference="Xie et al. 2020, released code; no weight decay on beta",
        beta_start=20.0,
    ),
    ActivationInfo(
        name="mish",
        formula="x tanh(log(1 + exp(alpha x)))",
        derivative_formula="g + alpha x (1 - g**2) sigmoid(alpha x), g = f(x) / x",
        function=functions.mish,
        derivative=functions.mish_slope,
        smoothness=math.inf,
        curvature=_times_alpha(_MISH_CURVATURE),
        reference="Misra 2019",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 1.0, _GRID, unsaid=True),
    ),
    ActivationInfo(
        name="relu_smooth_backward",
        formula="max(x, 0)",
        derivative_formula="sigmoid(alpha x), in the backward pass only",
        function=functions.relu_smooth_backward,
        derivative=lambda x, alpha: torch.sigmoid(functions.number(alpha) * x),
        smoothness=0,
        curvature=_always(math.inf),
        reference="Xie et al. 2020, section 3: the gradient-quality experiment (Table 1)",
        alpha=AlphaRange(_SMALLEST, _LARGEST, 10.0, (10.0,)),
        forward_of="relu",
    ),
)
