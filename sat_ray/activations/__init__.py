"""Activations: the registry, their arithmetic, and the user's own."""

from typing import TYPE_CHECKING

from sat_ray.activations.registry import (
    ACTIVATIONS,
    ActivationInfo,
    activation_info,
    alpha_text,
    curvature,
    display_name,
    make_activation,
)
from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.activations.module import Activation

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ActivationInfo",
    "activation_info",
    "alpha_text",
    "curvature",
    "display_name",
    "make_activation",
]

__getattr__ = lazy_names(__name__, {"module": ["Activation"]})
