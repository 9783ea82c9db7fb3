"""Activations: the registry, their arithmetic, and the user's own."""

from sat_ray.activations.registry import (
    ACTIVATIONS,
    Activation,
    ActivationInfo,
    activation_info,
    alpha_text,
    curvature,
    display_name,
    make_activation,
)

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
