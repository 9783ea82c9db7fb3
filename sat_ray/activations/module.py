"""An activation as a module of a network."""

import torch
from torch import Tensor, nn

from sat_ray.activations.info import ActivationInfo


class Activation(nn.Module):
    """An activation of the registry as a module; being of this class is what `view` looks for.

    x of any shape and float dtype -> the same shape and dtype. `alpha` is a float, or None; learned
    ones hold `beta`, alpha = beta**2.
    """

    def __init__(self, info: ActivationInfo, *, alpha: float | None) -> None:
        super().__init__()
        self.activation = info.name
        self.function = info.function
        self.alpha = alpha
        self.learned = info.learned
        made = info.user_defined
        # `own` is a name in the state_dict of stored checkpoints
        self.own = None if made is None or made.make is None else made.module(alpha)
        if info.beta_start is not None:
            self.beta = nn.Parameter(torch.tensor(info.beta_start, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to every element."""
        if self.own is not None:
            value: Tensor = self.own(x)
            return value
        return self.function(x, self.beta.square() if self.learned else self.alpha)

    def extra_repr(self) -> str:
        """Show name and alpha."""
        return self.activation if self.alpha is None else f"{self.activation}, alpha={self.alpha:g}"
