"""Models on [0, 1] pixels with any registered activation, and second views over their parameters."""

from sat_ray.models.batchnorm_folding import FoldedConv, folded, refresh
from sat_ray.models.build import build_model, check_user_defined_model, model_from_spec
from sat_ray.models.memory_format import memory_format, settle_layout
from sat_ray.models.normalized import Normalized
from sat_ray.models.spec import MODELS, ModelSpec
from sat_ray.models.view import assert_shares_storage, check_attacker_activation, view

__all__ = [
    "MODELS",
    "FoldedConv",
    "ModelSpec",
    "Normalized",
    "assert_shares_storage",
    "build_model",
    "check_attacker_activation",
    "check_user_defined_model",
    "folded",
    "memory_format",
    "model_from_spec",
    "refresh",
    "settle_layout",
    "view",
]
