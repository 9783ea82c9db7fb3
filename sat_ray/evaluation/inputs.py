"""Check the inputs of an evaluation: images, labels, logits, and the view of the model."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import display_name
from sat_ray.attacks import AttackSpec
from sat_ray.attacks.base import Model
from sat_ray.attacks.loss_names import fewest_classes
from sat_ray.data.split import Split, checked_split
from sat_ray.models import view
from sat_ray.utils.bounds import Slots, fault, shown
from sat_ray.utils.probabilities import require_no_probabilities


def attacker_view(model: Model, spec: AttackSpec) -> Model:
    """Return the model as an attack differentiates it; raise ValueError where there is no view."""
    if spec.attacker_activation is None:
        return model
    if not isinstance(model, nn.Module) or not any(
        isinstance(module, Activation) for module in model.modules()
    ):
        wanted = display_name(spec.attacker_activation, spec.attacker_alpha)
        raise ValueError(
            f"attack {spec.name} needs the view {wanted}, "
            "but the model was not built by sat_ray.models.build_model"
        )
    return view(model, spec.attacker_activation, alpha=spec.attacker_alpha)


def device_of(model: Model) -> torch.device:
    """Return where a model's parameters live; the CPU where it has none."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def check_images(
    images_uint8: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int],
    image_ids: Tensor | np.ndarray | Sequence[int],
    *,
    slots: int | None,
) -> Split:
    """Return images (N, C, H, W) uint8, labels and ids (N,) int64 on the CPU.

    Raises ValueError that names what is wrong with them.
    """
    given = checked_split(images_uint8, labels, image_ids)
    if slots is not None and (reason := fault(slots, Slots)):
        raise ValueError(f"slots must be {reason}, got {shown(slots)}")
    return given


def check_classes(spec: AttackSpec, num_classes: int) -> None:
    """Raise ValueError where a model has too few classes for an attack's loss or targets."""
    fewest = max(fewest_classes(spec.loss, targeted=spec.targets > 0), spec.targets + 1)
    if spec.algorithm != "square" and num_classes < fewest:
        raise ValueError(
            f"attack {spec.name} needs at least {fewest} classes, the model has {num_classes}; "
            "choose loss margin, or fewer targets"
        )


def check_logits(clean: Tensor, y: Tensor) -> None:
    """Raise ValueError where clean logits (N, K) do not fit the labels, or are probabilities."""
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < clean.shape[1]:
        raise ValueError(
            f"labels must lie in [0, {clean.shape[1] - 1}], because the model has "
            f"{clean.shape[1]} classes, got labels that lie in [{int(y.min())}, {int(y.max())}]"
        )
    require_no_probabilities(clean, what="model")
