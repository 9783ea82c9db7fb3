"""Activations of my own."""

import torch
from torch import Tensor, nn


# --8<-- [start:swish]
def my_swish(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x sigmoid(alpha x): between linear (alpha = 0) and relu (alpha large)."""
    return x * torch.sigmoid(alpha * x)


my_swish.alphas = (1.0, 2.0, 4.0)  # what a search tries, unless the recipe says otherwise
# --8<-- [end:swish]


class Leaky(nn.Module):
    """x for x > 0, slope x below, the slope learned per layer."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return torch.where(x > 0, x, self.slope * x)
