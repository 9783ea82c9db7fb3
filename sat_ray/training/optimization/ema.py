"""Exponential moving average of a model:  average = d average + (1 - d) weights,  d = min(decay, (1 + t) / (10 + t)) at update t.

The small d of the first updates keeps the random start out of the average. Buffers (BatchNorm's running statistics) are copied by value
after every update: sharing them would tie the average to whatever the followed model does next.
"""

import torch
from torch import nn

from sat_ray.models.copying import copied


class WeightAverage:
    """Follow a model at a distance; `model` holds the average, in inference mode."""

    def __init__(self, followed: nn.Module, *, decay: float) -> None:
        self.followed, self.decay = followed, decay
        self.model = copied(followed).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move towards the followed model. number: updates before this one."""
        weight = 1.0 - min(self.decay, (1 + number) / (10 + number))
        ours, theirs = list(self.model.parameters()), list(self.followed.parameters())
        for average, parameter in zip(ours, theirs, strict=True):
            average.lerp_(parameter, weight)
        for own, buffer in zip(self.model.buffers(), self.followed.buffers(), strict=True):
            own.copy_(buffer)
