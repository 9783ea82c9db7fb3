"""The only place with mean and std: [0, 1] pixels go in.

So epsilon is measured in pixels everywhere else.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from sat_ray.models.spec import ModelSpec, require_spread


class Normalized(nn.Module):
    """Standardise [0, 1] images per channel, then apply `body`.

    mean, std: one float per channel, in [0, 1] pixels;
    spec: what the body was built from, where `build_model` made it.
    x: (N, C, H, W) float in [0, 1] -> logits (N, num_classes).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        spec: ModelSpec | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(
                f"mean and std must have one number per channel each, "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        require_spread(std)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.body = body
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        if not isinstance(x, fx.Proxy):  # while a graph is traced there is no shape to look at
            self._require_channels(x.shape[1])
        logits: Tensor = self.body((x - self.mean) / self.std)
        return logits

    def _require_channels(self, found: int) -> None:
        """Raise ValueError for another number of channels; one channel would be broadcast."""
        expected = self.mean.shape[1]
        if found != expected:
            raise ValueError(
                f"images must have {expected} channel(s), as the model's mean and std have, "
                f"got {found}; convert the images (gray to RGB, or RGB to gray) as in training"
            )
