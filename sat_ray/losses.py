"""Losses of one image: every function maps logits (N, K) and labels (N,) to (N,) float32; the caller sums or averages.

cross_entropy(z, y) = log sum_k exp(z_k) - z_y          margin(z, y) = z_y - max_{k != y} z_k
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, y: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return each image's cross-entropy in float32, whatever precision the logits came in."""
    return F.cross_entropy(logits.float(), y.long(), reduction="none", label_smoothing=label_smoothing)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the label's logit minus the best other one: positive where the label wins; with one class, +inf."""
    logits = logits.float()
    label = y.long()[:, None]
    others = logits.scatter(1, label, float("-inf"))
    return logits.gather(1, label)[:, 0] - others.amax(dim=1)


def attack_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Return the scalar that an attack ascends: the sum over images, so that no image's gradient depends on the batch size."""
    return torch.sum(cross_entropy(logits, y))
