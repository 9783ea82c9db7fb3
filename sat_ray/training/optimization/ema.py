"""Exponential moving average of a model.

    average = d average + (1 - d) weights,    d = min(decay, (1 + t) / (10 + t)) at update t

The small d of the first updates keeps the random start out of the average. Buffers (BatchNorm's
running statistics) are copied by value after every update: if they were shared, later updates of
the followed model would change the average.
"""

import torch
from torch import nn

from sat_ray.models.copying import copied


class WeightAverage:
    """Average the weights of a model that trains; `model` holds the average, in inference mode."""

    def __init__(self, followed: nn.Module, *, decay: float) -> None:
        self.followed = followed
        self.decay = decay
        self.model = copied(followed).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move towards the followed model. number: updates before this one."""
        weight = 1.0 - min(self.decay, (1 + number) / (10 + number))
        pairs = zip(self.model.parameters(), self.followed.parameters(), strict=True)
        for average, parameter in pairs:
            average.lerp_(parameter, weight)
        for copy, buffer in zip(self.model.buffers(), self.followed.buffers(), strict=True):
            copy.copy_(buffer)
