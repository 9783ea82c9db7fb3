"""Losses of one image: every function maps logits (N, K) and labels (N,) to (N,) float32.

The caller sums or averages. z: logits; y: the label; t: an attack's target class; π: the classes
from the largest logit to the smallest.

cross_entropy(z, y) = log sum_k exp(z_k) - z_y          margin(z, y) = z_y - max_{k != y} z_k

Cross-entropy also takes soft labels, (N, K) shares q of the classes that sum to 1: then it is
sum_k q_k cross_entropy(z, k). Label smoothing s replaces q by (1 - s) q + s / K.

What an attack ascends     untargeted                      towards a target class t
  cross_entropy            cross_entropy(z, y)             -cross_entropy(z, t)
  margin                   -margin(z, y)                   z_t - z_y
  dlr                      -margin(z, y) / (z_π1 - z_π3)   (z_t - z_y) / (z_π1 - (z_π3 + z_π4) / 2)

dlr: Croce & Hein 2020.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12  # keeps DLR finite where all the logits are equal


def cross_entropy(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return each image's cross-entropy in float32, whatever precision the logits came in.

    y: (N,) classes, or (N, K) floating-point soft labels.
    """
    target = y if y.is_floating_point() else y.long()
    return F.cross_entropy(
        logits.float(), target, reduction="none", label_smoothing=label_smoothing
    )


def classes_of(y: Tensor) -> Tensor:
    """Return the class of each label, (N,); of a soft label, the class of the largest share."""
    return y.argmax(dim=1) if y.is_floating_point() else y


def likeliest_others(logits: Tensor, y: Tensor) -> Tensor:
    """Return all classes except the label, the largest logit first, (N, K - 1) int64."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != y[:, None]].view(len(y), -1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the label's logit minus the largest other one, positive where the label wins.

    With one class it is +inf.
    """
    logits = logits.float()
    label = y.long()[:, None]
    others = logits.scatter(1, label, float("-inf"))
    return logits.gather(1, label)[:, 0] - others.amax(dim=1)


def attack_loss(
    logits: Tensor,
    y: Tensor,
    *,
    loss: str = "cross_entropy",
    target: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return what an attack ascends for each image, (N,) float32.

    The gradient of the sum does not depend on the batch size for any image. loss: one of
    ATTACK_LOSSES; target: (N,) classes to move towards, None to move away from the label.
    Soft labels and label smoothing: for the untargeted cross-entropy.
    """
    if loss == "cross_entropy":
        if target is None:
            return cross_entropy(logits, y, label_smoothing=label_smoothing)
        return -cross_entropy(logits, target)
    logits = logits.float()
    rise = -margin(logits, y) if target is None else _logit(logits, target) - _logit(logits, y)
    if loss == "margin":
        return rise
    return rise / (_spread(logits, targeted=target is not None) + _TINY)


def _logit(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.long()[:, None])[:, 0]


def _spread(logits: Tensor, *, targeted: bool) -> Tensor:
    largest = torch.topk(logits, 4 if targeted else 3, dim=1).values
    lower = largest[:, 2:4].mean(dim=1) if targeted else largest[:, 2]
    return largest[:, 0] - lower
