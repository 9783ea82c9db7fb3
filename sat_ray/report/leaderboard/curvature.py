"""The curvature max |f''| of a configuration's activation, as the report shows it."""

import math
from typing import Any

from sat_ray.activations import curvature
from sat_ray.report.formatting import ABSENT


def curvature_of(name: str, alpha: float | None) -> float:
    """Return max |f''|: infinite for a kink, NaN if unknown (learned or user-defined)."""
    try:
        return curvature(name, alpha)
    except ValueError:  # a user-defined activation whose code is not here any more
        return math.nan


def curvature_json(value: float) -> dict[str, Any]:
    """Return {"curvature", "curvature_text"} of a row: the number and its spelling.

    The number is None where it is infinite or unknown.
    """
    return {
        "curvature": value if math.isfinite(value) else None,
        "curvature_text": curvature_text(value),
    }


def curvature_text(value: float) -> str:
    """Spell a curvature: `2.5`, `∞`, or `–` where it is not known."""
    if math.isnan(value):
        return ABSENT
    return "∞" if math.isinf(value) else f"{value:.3g}"
