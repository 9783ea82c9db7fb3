"""The activation registry: one entry adds one activation to models, search space, command-line help, tables and tests.

    parametric_softplus  f(x) = log(1 + exp(alpha x)) / alpha      f'(x) = sigmoid(alpha x)
    smoothrelu           f(x) = x - log(alpha x + 1) / alpha       f'(x) = alpha x / (1 + alpha x)      for x >= 0, else 0

`alpha` is the sharpness of the activation and nothing else. Sources: Xie et al. 2020 (arXiv 2006.14536) unless an entry says otherwise.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sat_ray import activation_functions as functions
from sat_ray.activation_functions import Alpha
from sat_ray.names import check_name
from sat_ray.own_activation import OwnActivation, check_activation, read_activation
from sat_ray.reference import is_reference


@dataclass(frozen=True)
class AlphaRange:
    """The values that alpha may take, the one used when none is given, and the grid that a search tries."""

    low: float
    high: float
    default: float
    grid: tuple[float, ...]


@dataclass(frozen=True)
class ActivationInfo:
    """Everything the system knows about one activation.

    function(x, alpha) and derivative(x, alpha) work on tensors of any shape; smoothness is the number of continuous derivatives
    (inf for analytic functions, nan where nobody said); forward_of names the activation whose forward pass this one shares; own: where it
    is not of the registry but the user's.
    """

    name: str
    formula: str
    derivative_formula: str
    function: Callable[[Tensor, Alpha], Tensor]
    derivative: Callable[[Tensor, Alpha], Tensor]
    smoothness: float
    reference: str
    alpha: AlphaRange | None = None
    learned: bool = False
    forward_of: str = ""
    own: OwnActivation | None = None

    @property
    def forward_name(self) -> str:
        """Name the activation that computes the same forward pass (itself unless only the backward pass differs)."""
        return self.forward_of or self.name

    @property
    def grid(self) -> tuple[float | None, ...]:
        """Return the alphas that a search tries: one None where there is no alpha to choose."""
        return (None,) if self.alpha is None else self.alpha.grid

    @property
    def smooth_backward(self) -> bool:
        """Say whether the backward pass is not the derivative of the forward pass."""
        return bool(self.forward_of)

    def smoothness_at(self, alpha: float | None) -> float:
        """Return the number of continuous derivatives at one alpha: elu is smooth at alpha = 1 alone."""
        return 0.0 if self.name == "elu" and alpha != 1.0 else self.smoothness

    def check_alpha(self, alpha: float | None, *, field: str = "alpha") -> float | None:
        """Return the alpha to use (the default where None is given); raise ValueError outside the allowed range."""
        if self.alpha is None:
            if alpha is not None:
                raise ValueError(f"{field} is {alpha:g} but {self.name} takes no alpha; leave it out")
            return None
        value = self.alpha.default if alpha is None else float(alpha)
        if not (math.isfinite(value) and self.alpha.low <= value <= self.alpha.high):
            raise ValueError(f"{field} is {value:g}; allowed for {self.name}: {self.alpha.low:g} to {self.alpha.high:g}")
        if self.own is not None:
            _checked(self.own, value)
        return value


_ENTRIES = (
    ActivationInfo(
        name="relu",
        formula="max(x, 0)",
        derivative_formula="1 for x > 0, else 0",
        function=lambda x, alpha: F.relu(x),
        derivative=lambda x, alpha: (x > 0).to(x.dtype),
        smoothness=0,
        reference="baseline",
    ),
    ActivationInfo(
        name="parametric_softplus",
        formula="log(1 + exp(alpha x)) / alpha",
        derivative_formula="sigmoid(alpha x)",
        function=functions.softplus,
        derivative=lambda x, alpha: torch.sigmoid(functions.number(alpha) * x),
        smoothness=math.inf,
        reference="Xie et al. 2020, section 4.1; alpha = 10 there",
        alpha=AlphaRange(1e-3, 1e6, 10.0, (2.0, 5.0, 10.0, 20.0)),
    ),
    ActivationInfo(
        name="softplus",
        formula="log(1 + exp(x))",
        derivative_formula="sigmoid(x)",
        function=lambda x, alpha: functions.softplus(x, 1.0),
        derivative=lambda x, alpha: torch.sigmoid(x),
        smoothness=math.inf,
        reference="Xie et al. 2020, released code",
    ),
    ActivationInfo(
        name="silu",
        formula="x sigmoid(x)",
        derivative_formula="sigmoid(x) + x sigmoid(x) (1 - sigmoid(x))",
        function=lambda x, alpha: F.silu(x),
        derivative=functions.silu_slope,
        smoothness=math.inf,
        reference="Xie et al. 2020: the most robust of its activations",
    ),
    ActivationInfo(
        name="gelu",
        formula="x Phi(x)",
        derivative_formula="Phi(x) + x phi(x)",
        function=lambda x, alpha: F.gelu(x),
        derivative=functions.gelu_slope,
        smoothness=math.inf,
        reference="Hendrycks and Gimpel 2016; the SAT release uses its tanh approximation",
    ),
    ActivationInfo(
        name="elu",
        formula="x for x >= 0, alpha (exp(x) - 1) below",
        derivative_formula="1 for x >= 0, alpha exp(x) below",
        function=lambda x, alpha: F.elu(x, alpha=functions.number(alpha)),
        derivative=lambda x, alpha: torch.where(x >= 0, torch.ones_like(x), functions.number(alpha) * torch.exp(x.clamp_max(0))),
        smoothness=1,
        reference="Clevert et al. 2015; smooth at alpha = 1 alone",
        alpha=AlphaRange(1e-3, 100.0, 1.0, (0.5, 1.0, 2.0)),
    ),
    ActivationInfo(
        name="celu",
        formula="x for x >= 0, alpha (exp(x / alpha) - 1) below",
        derivative_formula="1 for x >= 0, exp(x / alpha) below",
        function=lambda x, alpha: F.celu(x, alpha=functions.number(alpha)),
        derivative=lambda x, alpha: torch.where(x >= 0, torch.ones_like(x), torch.exp(x.clamp_max(0) / functions.number(alpha))),
        smoothness=1,
        reference="Barron 2017; smooth for every alpha",
        alpha=AlphaRange(1e-3, 100.0, 1.0, (0.5, 1.0, 2.0)),
    ),
    ActivationInfo(
        name="smoothrelu",
        formula="x - log(alpha x + 1) / alpha for x >= 0, else 0",
        derivative_formula="alpha x / (1 + alpha x) for x >= 0, else 0",
        function=functions.smoothrelu,
        derivative=functions.smoothrelu_slope,
        smoothness=1,
        reference="Xie et al. 2020, equation 5",
        alpha=AlphaRange(1e-3, 1e6, 10.0, (5.0, 20.0, 100.0)),
    ),
    ActivationInfo(
        name="smoothrelu_learned",
        formula="smoothrelu with alpha = beta**2, beta learned per layer from 20",
        derivative_formula="alpha x / (1 + alpha x) for x >= 0, else 0",
        function=functions.smoothrelu,
        derivative=functions.smoothrelu_slope,
        smoothness=1,
        reference="Xie et al. 2020, released code; no weight decay on beta",
        learned=True,
    ),
    ActivationInfo(
        name="mish",
        formula="x tanh(log(1 + exp(x)))",
        derivative_formula="tanh(softplus(x)) + x (1 - tanh(softplus(x))**2) sigmoid(x)",
        function=lambda x, alpha: F.mish(x),
        derivative=functions.mish_slope,
        smoothness=math.inf,
        reference="Misra 2019",
    ),
    ActivationInfo(
        name="relu_smooth_backward",
        formula="max(x, 0)",
        derivative_formula="sigmoid(alpha x), in the backward pass only",
        function=functions.relu_smooth_backward,
        derivative=lambda x, alpha: torch.sigmoid(functions.number(alpha) * x),
        smoothness=0,
        reference="Xie et al. 2020, section 3: the gradient-quality experiment (Table 1)",
        alpha=AlphaRange(1e-3, 1e6, 10.0, (10.0,)),
        forward_of="relu",
    ),
)
ACTIVATIONS: dict[str, ActivationInfo] = {info.name: info for info in _ENTRIES}
LEARNED_BETA_START = 20.0
_OTHER_NAMES = {"swish": "silu", "smooth_relu": "smoothrelu", "softplus_parametric": "parametric_softplus"}


class Activation(nn.Module):
    """An activation of the registry as a module; being of this class is what `view` looks for.

    x of any shape and float dtype -> the same shape and dtype. `alpha` is a float, or None; learned ones hold `beta`, alpha = beta**2.
    """

    def __init__(self, info: ActivationInfo, *, alpha: float | None) -> None:
        super().__init__()
        self.activation = info.name
        self.function = info.function
        self.alpha = alpha
        self.learned = info.learned
        self.own = info.own.module(alpha) if info.own is not None and info.own.make is not None else None
        if info.learned:
            self.beta = nn.Parameter(torch.tensor(LEARNED_BETA_START, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to every element."""
        if self.own is not None:
            value: Tensor = self.own(x)
            return value
        return self.function(x, self.beta.square() if self.learned else self.alpha)

    def extra_repr(self) -> str:
        """Show name and alpha."""
        return self.activation if self.alpha is None else f"{self.activation}, alpha={self.alpha:g}"


OWN_ALPHA = 1e6  # largest alpha, either sign, of a user's own activation


@functools.cache
def _own(name: str) -> ActivationInfo:
    own = read_activation(name)
    if own.default is None:
        _checked(own, None)
    return ActivationInfo(
        name=name,
        formula=own.about,
        derivative_formula="of autograd, agrees with finite differences",
        function=own.apply,
        derivative=functools.partial(_slope, own),
        smoothness=math.nan,
        reference=name,
        alpha=None if own.default is None else AlphaRange(-OWN_ALPHA, OWN_ALPHA, own.default, own.grid),
        own=own,
    )


@functools.cache
def _checked(own: OwnActivation, alpha: float | None) -> None:
    check_activation(own, alpha)


def _slope(own: OwnActivation, x: Tensor, alpha: Alpha) -> Tensor:
    point = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(own.apply(point, None if alpha is None else functions.number(alpha)).sum(), point)[0]


def activation_info(name: str, *, field: str = "activation") -> ActivationInfo:
    """Look an activation up, in the registry or, as module:function, in the user's code; ValueError suggests the closest names.

    The user's own is checked when it is first asked for, and at each alpha that it is used with.
    """
    if is_reference(name):
        return _own(name)
    if name in _OTHER_NAMES:
        raise ValueError(f"{field} {name!r} is called {_OTHER_NAMES[name]} here")
    return ACTIVATIONS[check_name(name, ACTIVATIONS, field=field)]


def make_activation(name: str, *, alpha: float | None = None) -> Activation:
    """Build the module of an activation of the registry, or of the user's own, `module:function`.

    alpha: sharpness, None for the registry's default. Raises ValueError on an unknown name or an alpha that is not allowed.
    """
    info = activation_info(name)
    return Activation(info, alpha=info.check_alpha(alpha))


def display_name(name: str, alpha: float | None) -> str:
    """Name a configuration as people say it: `silu`, `parametric_softplus α=10`."""
    return name if alpha is None else f"{name} α={alpha_text(alpha)}"


def alpha_text(alpha: float) -> str:
    """Write an alpha so that no two look alike: `10`, `0.5`."""
    return repr(float(alpha)).removesuffix(".0")
