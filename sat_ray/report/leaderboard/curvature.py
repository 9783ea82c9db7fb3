"""The curvature max |f''| of a configuration's activation, as the report shows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sat_ray.activations import registry as activations
from sat_ray.report.formatting import ABSENT

# max |f''| of f_alpha(x) = f(alpha x) / alpha is alpha times that of f.
_UNSCALED = {"silu": 0.5, "gelu": math.sqrt(2 / math.pi), "softplus": 0.25, "mish": 0.6442}
_SCALED = {"parametric_softplus": 0.25, "smoothrelu": 1.0}
_KINKED = ("relu", "relu_smooth_backward")


def _known_curvature(name: str, alpha: float | None) -> float:
    """Return max |f''| until the registry has a function `curvature` of its own; then this goes away with its three tables."""
    if name in _KINKED:
        return math.inf
    if name in _UNSCALED:
        return _UNSCALED[name] * (1.0 if alpha is None else alpha)
    if name in _SCALED and alpha is not None:
        return _SCALED[name] * alpha
    if name == "celu" and alpha is not None:
        return 1 / alpha
    if name == "elu":
        return 1.0 if alpha in (None, 1.0) else math.inf
    return math.nan


def curvature_of(name: str, alpha: float | None) -> float:
    """Return max |f''|: infinite for a kink, NaN where it is not known (learned, or the user's own)."""
    registered: Callable[..., float] = getattr(activations, "curvature", _known_curvature)
    try:
        return float(registered(name, alpha))
    except ValueError:  # an activation of the user's own whose code is not here any more
        return math.nan


def curvature_json(value: float) -> dict[str, Any]:
    """Return {"curvature", "curvature_text"} of a row: the number, None where it is infinite or unknown, and how it is spelled."""
    return {"curvature": value if math.isfinite(value) else None, "curvature_text": curvature_text(value)}


def curvature_text(value: float) -> str:
    """Spell a curvature: `2.5`, `∞`, or `–` where it is not known."""
    if math.isnan(value):
        return ABSENT
    return "∞" if math.isinf(value) else f"{value:.3g}"
