"""The activation registry: look up an activation by its name, and write names for people.

The entries are in `sat_ray.activations.entries`.
"""

import functools
import math
from typing import TYPE_CHECKING

from sat_ray.activations.entries import ACTIVATIONS
from sat_ray.activations.info import ActivationInfo, AlphaRange, check_user_defined
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import check_name

if TYPE_CHECKING:  # torch is loaded where something is computed; names and facts are light
    from sat_ray.activations.module import Activation

__all__ = [
    "ACTIVATIONS",
    "USER_DEFINED_ALPHA",
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
        check_user_defined(user_defined, None)
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


def activation_info(name: str, *, field: str = "activation") -> ActivationInfo:
    """Look up an activation of the registry or, as module:function, of the user's code.

    A user-defined one is checked at its first use, and at each alpha that it is used with. Raises
    ValueError that suggests the closest names.
    """
    if is_reference(name):
        return _user_defined(name)
    if name in _OTHER_NAMES:
        raise ValueError(f"{field} {name!r} is called {_OTHER_NAMES[name]} here")
    return ACTIVATIONS[check_name(name, ACTIVATIONS, field=field)]


def make_activation(name: str, *, alpha: float | None = None) -> "Activation":
    """Build the module of an activation of the registry, or of a user-defined `module:function`.

    alpha: sharpness, None for the default. Raises ValueError on an unknown name or an alpha that is
    not allowed.
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
    """Return max over x of |f''(x)| of an activation of the registry or a user-defined one.

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
    """Name an activation and its alpha: `silu` (alpha 1), `silu α=4`, `celu α=0.5`."""
    return name if alpha is None or leaves_out(name, alpha) else f"{name} α={alpha_text(alpha)}"


def leaves_out(name: str, alpha: float) -> bool:
    """Say whether names leave an alpha out: that of silu, gelu and mish where it is 1."""
    known = ACTIVATIONS[name].alpha if name in ACTIVATIONS else None
    return known is not None and known.unsaid and alpha == known.default


def alpha_text(alpha: float) -> str:
    """Write an alpha so that no two look alike: `10`, `0.5`."""
    return repr(float(alpha)).removesuffix(".0")
