"""The only place with mean and std: [0, 1] pixels go in, so that epsilon is measured in pixels everywhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sat_ray.models.spec import ModelSpec


class Normalized(nn.Module):
    """Standardise [0, 1] images per channel, then apply `body`.

    mean, std: one float per channel, in [0, 1] pixels;
    spec: what the body was built from, where `build_model` made it.
    x: (N, C, H, W) float in [0, 1] -> logits (N, num_classes).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, *, mean: Sequence[float], std: Sequence[float], spec: ModelSpec | None = None) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one number per channel, std > 0")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.body = body
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        logits: Tensor = self.body((x - self.mean) / self.std)
        return logits
