"""Exact robust accuracy: the engine, its surrogates, external models, and the robustness card.

The public names are loaded when they are first used, so that importing a light module of this
package does not load the engine.
"""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

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

_NAMES = {
    "outcomes": ["OUTCOME_SCHEMA", "clean_correct_ids", "robust_image_ids"],
    "robustness": ["calibrate_attacks", "evaluate"],
}

__getattr__ = lazy_names(__name__, _NAMES)
