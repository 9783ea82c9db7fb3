"""Models on [0, 1] pixels with any registered activation, and views of them."""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.models.batchnorm_folding import FoldedConv, folded, refresh
    from sat_ray.models.build import (
        build_model,
        check_timm_model,
        check_user_defined_model,
        model_from_spec,
    )
    from sat_ray.models.memory_format import memory_format, settle_layout
    from sat_ray.models.normalized import Normalized
    from sat_ray.models.spec import MODELS, ModelSpec, check_attacker_activation
    from sat_ray.models.view import assert_shares_storage, view

__all__ = [
    "MODELS",
    "FoldedConv",
    "ModelSpec",
    "Normalized",
    "assert_shares_storage",
    "build_model",
    "check_attacker_activation",
    "check_timm_model",
    "check_user_defined_model",
    "folded",
    "memory_format",
    "model_from_spec",
    "refresh",
    "settle_layout",
    "view",
]

_NAMES = {
    "batchnorm_folding": ["FoldedConv", "folded", "refresh"],
    "build": ["build_model", "check_timm_model", "check_user_defined_model", "model_from_spec"],
    "memory_format": ["memory_format", "settle_layout"],
    "normalized": ["Normalized"],
    "spec": ["MODELS", "ModelSpec", "check_attacker_activation"],
    "view": ["assert_shares_storage", "view"],
}

__getattr__ = lazy_names(__name__, _NAMES)
