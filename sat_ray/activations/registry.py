"""The activation registry: models, search space, command-line help, tables and tests use it.

    sharpness   f_alpha(x) = f(alpha x) / alpha   parametric_softplus, silu, gelu, mish, smoothrelu
    curvature   max over x of |f''(x)|            of f_alpha it is alpha times that of f

`alpha` is the sharpness of the activation and nothing else. A large alpha gives relu; a small one
gives x / 2 (smoothrelu: 0). Two names keep torch's own alpha: celu's is 1 / sharpness, and elu's
is the depth below zero, where the derivative jumps at 0 unless alpha is 1.
"""

import functools
import math

from torch import Tensor

from sat_ray.activations.entries import ENTRIES
from sat_ray.activations.functions import Alpha, number
from sat_ray.activations.info import Activation, ActivationInfo, AlphaRange, checked
from sat_ray.activations.user_defined import OwnActivation, measured_curvature, read_activation
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import check_name

__all__ = [
    "ACTIVATIONS",
    "OWN_ALPHA",
    "Activation",
    "ActivationInfo",
    "AlphaRange",
    "activation_info",
    "alpha_text",
    "curvature",
    "curvature_text",
    "display_name",
    "function_of",
    "leaves_out",
    "make_activation",
]

ACTIVATIONS: dict[str, ActivationInfo] = {info.name: info for info in ENTRIES}
"""Every registered activation by its name."""
_TWINS = {  # names of one function
    ("softplus", None): ("parametric_softplus", 1.0),
    ("celu", 1.0): ("elu", 1.0),
}
_OTHER_NAMES = {
    "swish": "silu",
    "smooth_relu": "smoothrelu",
    "softplus_parametric": "parametric_softplus",
}
OWN_ALPHA = 1e6  # largest alpha, either sign, of a user-defined activation


@functools.cache
def _own(name: str) -> ActivationInfo:
    own = read_activation(name)
    if own.default is None:
        checked(own, None)
    return ActivationInfo(
        name=name,
        formula=own.about,
        derivative_formula="of autograd, agrees with finite differences",
        function=own.apply,
        derivative=functools.partial(_slope, own),
        smoothness=math.nan,
        curvature=functools.partial(measured_curvature, own),
        reference=name,
        alpha=None
        if own.default is None
        else AlphaRange(-OWN_ALPHA, OWN_ALPHA, own.default, own.grid),
        own=own,
    )


def _slope(own: OwnActivation, x: Tensor, alpha: Alpha) -> Tensor:
    return own.slope(x, None if alpha is None else number(alpha))


def activation_info(name: str, *, field: str = "activation") -> ActivationInfo:
    """Look up an activation, in the registry or, as module:function, in the user's code.

    A user-defined one is checked when it is first used, and at each alpha. Raises ValueError that
    suggests the closest names.
    """
    if is_reference(name):
        return _own(name)
    if name in _OTHER_NAMES:
        raise ValueError(f"{field} {name!r} is unknown; use {_OTHER_NAMES[name]}")
    return ACTIVATIONS[check_name(name, ACTIVATIONS, field=field)]


def make_activation(name: str, *, alpha: float | None = None) -> Activation:
    """Build the module of an activation of the registry, or of `module:function`.

    alpha: sharpness, None for the registry's default. Raises ValueError on an unknown name or an
    alpha that is not allowed.
    """
    info = activation_info(name)
    return Activation(info, alpha=info.check_alpha(alpha))


def function_of(name: str, alpha: float | None) -> tuple[str, float | None]:
    """Return one name and alpha for all names of a function: those of softplus, and of celu at 1.

    alpha: as `check_alpha` returns it.
    """
    return _TWINS.get((name, alpha), (name, alpha))


def curvature(name: str, alpha: float | None = None) -> float:
    """Return max over x of |f''(x)| of an activation of the registry or of the user.

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
    """Name an activation and its alpha.

    Examples: `silu` (alpha 1), `silu α=4`, `parametric_softplus α=10`.
    """
    return name if alpha is None or leaves_out(name, alpha) else f"{name} α={alpha_text(alpha)}"


def leaves_out(name: str, alpha: float) -> bool:
    """Say whether names leave an alpha out: that of silu, gelu and mish where it is 1."""
    known = ACTIVATIONS[name].alpha if name in ACTIVATIONS else None
    return known is not None and known.unsaid and alpha == known.default


def alpha_text(alpha: float) -> str:
    """Write an alpha so that no two look alike: `10`, `0.5`."""
    return repr(float(alpha)).removesuffix(".0")
