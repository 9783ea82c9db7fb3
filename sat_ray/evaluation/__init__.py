"""Exact robust accuracy: the engine, its surrogates, external models, and the robustness card.

The public names are loaded when they are first used, so that importing a light module of this
package does not load the engine.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_ray.evaluation.outcomes import OUTCOME_SCHEMA, clean_correct_ids, robust_image_ids
    from sat_ray.evaluation.robustness import calibrate_attacks, evaluate

__all__ = [
    "OUTCOME_SCHEMA",
    "calibrate_attacks",
    "clean_correct_ids",
    "evaluate",
    "robust_image_ids",
]

_HOMES = {
    "OUTCOME_SCHEMA": "outcomes",
    "calibrate_attacks": "robustness",
    "clean_correct_ids": "outcomes",
    "evaluate": "robustness",
    "robust_image_ids": "outcomes",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
