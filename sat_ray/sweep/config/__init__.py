"""The settings of a sweep. A recipe is a function that returns them; options override fields."""

from sat_ray.sweep.config.evaluation import EvaluationSettings, Strong
from sat_ray.sweep.config.inputs import DataSettings, ModelSettings
from sat_ray.sweep.config.resources import CostSettings, ResourceSettings
from sat_ray.sweep.config.search import SEARCHED, TABLE1_PAIRS, FinalSettings, SearchSettings
from sat_ray.sweep.config.sweep import Recipe, SweepConfig

__all__ = [
    "SEARCHED",
    "TABLE1_PAIRS",
    "CostSettings",
    "DataSettings",
    "EvaluationSettings",
    "FinalSettings",
    "ModelSettings",
    "Recipe",
    "ResourceSettings",
    "SearchSettings",
    "Strong",
    "SweepConfig",
]
