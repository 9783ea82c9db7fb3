"""The activation registry: one entry adds one activation to models, search space, command-line help, tables and tests.

    sharpness    f_alpha(x) = f(alpha x) / alpha    parametric_softplus, silu, gelu, mish, smoothrelu
    curvature    max over x of |f''(x)|             of f_alpha it is alpha times that of f

`alpha` is the sharpness of the activation and nothing else. A large alpha gives relu; a small one
gives x / 2 (smoothrelu: 0). Two names keep torch's own alpha: celu's is 1 / sharpness, and elu's
is the depth below zero, where the derivative jumps at 0 unless alpha is 1.
Sources: Xie et al. 2020 (arXiv 2006.14536) unless an entry says otherwise.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import check_name

if TYPE_CHECKING:  # torch is loaded where something is computed; names and facts are light
    from sat_ray.activations.functions import Function
    from sat_ray.activations.module import Activation
    from sat_ray.activations.user_defined import UserDefinedActivation


@dataclass(frozen=True)
class AlphaRange:
    """The values that alpha may take, the default, and the grid that a search tries.

    unsaid: names leave the default out, because it gives the function that the bare name means
    everywhere else: `silu`, `silu α=4`.
    """

    low: float
    high: float
    default: float
    grid: tuple[float, ...]
    unsaid: bool = False


@dataclass(frozen=True)
class ActivationInfo:
    """Everything the system knows about one activation.

    smoothness is the number of continuous derivatives (inf for analytic functions, nan where nobody
    said); curvature(alpha) is max |f''|, also of a learned alpha; beta_start: where a learned alpha = beta**2 starts, None where alpha is not
    learned; forward_of names the activation whose forward pass this one shares; user_defined: set where it
    is the user's.
    """

    name: str
    formula: str
    derivative_formula: str
    smoothness: float
    curvature: Callable[[float | None], float]
    reference: str
    alpha: AlphaRange | None = None
    beta_start: float | None = None
    forward_of: str = ""
    user_defined: "UserDefinedActivation | None" = None

    @property
    def function(self) -> "Function":
        """Return the activation as a function (x, alpha) of tensors of any shape."""
        from sat_ray.activations.functions import FUNCTIONS

        return FUNCTIONS[self.name] if self.user_defined is None else self.user_defined.apply

    @property
    def derivative(self) -> "Function":
        """Return its derivative as a function (x, alpha) of tensors of any shape."""
        from sat_ray.activations.functions import SLOPES

        return SLOPES[self.name] if self.user_defined is None else self.user_defined.slope

    @property
    def learned(self) -> bool:
        """Say whether alpha is learned, one per layer."""
        return self.beta_start is not None

    @property
    def forward_name(self) -> str:
        """Name the activation that computes the same forward pass (itself unless only the backward pass differs)."""
        return self.forward_of or self.name

    @property
    def grid(self) -> tuple[float | None, ...]:
        """Return the alphas that a search tries: one None where there is no alpha to choose.

        The default comes first, so that a search which its budget cuts has tried it.
        """
        if self.alpha is None:
            return (None,)
        default = self.alpha.default
        return tuple(sorted(self.alpha.grid, key=lambda alpha: (alpha != default, alpha)))

    def curvature_at(self, alpha: float | None) -> float:
        """Return the maximum over x of |f''(x)| at one alpha, None for the default.

        Infinite where the derivative jumps, as that of relu does. nan where alpha is learned: each
        layer then has its user_defined. relu_smooth_backward has that of its forward pass, relu. That of a
        user's activation is measured. Raises ValueError on an alpha that is not allowed.
        """
        used = self.check_alpha(alpha)
        return math.nan if self.learned else self.curvature(used)

    @property
    def alpha_start(self) -> float:
        """Return where a learned alpha starts."""
        assert self.beta_start is not None
        return self.beta_start**2

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
                raise ValueError(
                    f"{field} must be left out for {self.name}, which takes no alpha, got {alpha:g}"
                )
            return None
        value = self.alpha.default if alpha is None else float(alpha)
        if not (math.isfinite(value) and self.alpha.low <= value <= self.alpha.high):
            raise ValueError(
                f"{field} must be from {self.alpha.low:g} to {self.alpha.high:g} "
                f"for {self.name}, got {value:g}"
            )
        if self.user_defined is not None:
            _checked(self.user_defined, value)
        return value


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
        reference="Dai et al. 2021 (arXiv 2110.05626) learn a parametric SiLU; no weight decay on beta",
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
"""Every registered activation by its name: formula, derivative, smoothness, range of alpha, reference."""
_TWINS = {  # names of one function
    ("softplus", None): ("parametric_softplus", 1.0),
    ("celu", 1.0): ("elu", 1.0),
}
_OTHER_NAMES = {
    "swish": "silu",
    "smooth_relu": "smoothrelu",
    "softplus_parametric": "parametric_softplus",
}


USER_DEFINED_ALPHA = 1e6  # largest alpha, either sign, of a user's own activation


@functools.cache
def _user_defined(name: str) -> ActivationInfo:
    from sat_ray.activations.user_defined import measured_curvature, read_activation

    user_defined = read_activation(name)
    if user_defined.default is None:
        _checked(user_defined, None)
    return ActivationInfo(
        name=name,
        formula=user_defined.about,
        derivative_formula="of autograd, agrees with finite differences",
        smoothness=math.nan,
        curvature=functools.partial(measured_curvature, user_defined),
        reference=name,
        alpha=None
        if user_defined.default is None
        else AlphaRange(
            -USER_DEFINED_ALPHA, USER_DEFINED_ALPHA, user_defined.default, user_defined.grid
        ),
        user_defined=user_defined,
    )


@functools.cache
def _checked(user_defined: "UserDefinedActivation", alpha: float | None) -> None:
    from sat_ray.activations.user_defined import check_activation

    check_activation(user_defined, alpha)


def activation_info(name: str, *, field: str = "activation") -> ActivationInfo:
    """Look an activation up, in the registry or, as module:function, in the user's code; ValueError suggests the closest names.

    The user's user_defined is checked when it is first asked for, and at each alpha that it is used with.
    """
    if is_reference(name):
        return _user_defined(name)
    if name in _OTHER_NAMES:
        raise ValueError(f"{field} {name!r} is called {_OTHER_NAMES[name]} here")
    return ACTIVATIONS[check_name(name, ACTIVATIONS, field=field)]


def make_activation(name: str, *, alpha: float | None = None) -> "Activation":
    """Build the module of an activation of the registry, or of the user's user_defined, `module:function`.

    alpha: sharpness, None for the registry's default. Raises ValueError on an unknown name or an alpha that is not allowed.
    """
    from sat_ray.activations.module import Activation

    info = activation_info(name)
    return Activation(info, alpha=info.check_alpha(alpha))


def function_of(name: str, alpha: float | None) -> tuple[str, float | None]:
    """Return one name and alpha for all names of a function: those of softplus, and of celu at 1.

    alpha: as `check_alpha` returns it.
    """
    return _TWINS.get((name, alpha), (name, alpha))


def curvature(name: str, alpha: float | None = None) -> float:
    """Return max over x of |f''(x)| of an activation of the registry, or of the user's user_defined.

    name: of the registry, or module:function; alpha: None for the default. math.inf for relu and
    all that has a kink, math.nan where it is not known: see `ActivationInfo.curvature_at`. Raises
    ValueError on an unknown name or an alpha that is not allowed.
    """
    return activation_info(name).curvature_at(alpha)


def curvature_text(value: float) -> str:
    """Write a curvature for people: `2.5`, `infinite`, `unknown`."""
    if math.isnan(value):
        return "unknown"
    return "infinite" if math.isinf(value) else f"{value:.3g}"


def display_name(name: str, alpha: float | None) -> str:
    """Name an activation and its alpha: `silu` (alpha 1), `silu α=4`, `parametric_softplus α=10`."""
    return name if alpha is None or leaves_out(name, alpha) else f"{name} α={alpha_text(alpha)}"


def leaves_out(name: str, alpha: float) -> bool:
    """Say whether names leave an alpha out: that of silu, gelu and mish where it is 1."""
    known = ACTIVATIONS[name].alpha if name in ACTIVATIONS else None
    return known is not None and known.unsaid and alpha == known.default


def alpha_text(alpha: float) -> str:
    """Write an alpha so that no two look alike: `10`, `0.5`."""
    return repr(float(alpha)).removesuffix(".0")
