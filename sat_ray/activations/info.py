"""What the registry holds for each activation, and the module that applies it."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sat_ray.activations.functions import Alpha
from sat_ray.activations.user_defined import OwnActivation, check_activation


@dataclass(frozen=True)
class AlphaRange:
    """The values that alpha may take, the default, and the grid that a search tries.

    unsaid: names leave the default out, because it gives the function that the bare name means
    everywhere else: `silu`, `silu α=4`.
    """

    low: float
    high: float
    default: float
    grid: tuple[float, ...]
    unsaid: bool = False


@dataclass(frozen=True)
class ActivationInfo:
    """Hold everything about one activation.

    function(x, alpha) and derivative(x, alpha) work on tensors of any shape; smoothness is the
    number of continuous derivatives (inf for analytic functions, nan where it is not known);
    curvature(alpha) is max |f''|, also of a learned alpha; beta_start: where a learned
    alpha = beta**2 starts, None where alpha is not learned; forward_of names the activation whose
    forward pass this one shares; own: set for a user-defined activation.
    """

    name: str
    formula: str
    derivative_formula: str
    function: Callable[[Tensor, Alpha], Tensor]
    derivative: Callable[[Tensor, Alpha], Tensor]
    smoothness: float
    curvature: Callable[[float | None], float]
    reference: str
    alpha: AlphaRange | None = None
    beta_start: float | None = None
    forward_of: str = ""
    own: OwnActivation | None = None

    @property
    def learned(self) -> bool:
        """Say whether alpha is learned, one per layer."""
        return self.beta_start is not None

    @property
    def forward_name(self) -> str:
        """Name the activation that computes the same forward pass.

        It is this one, unless only the backward pass differs.
        """
        return self.forward_of or self.name

    @property
    def grid(self) -> tuple[float | None, ...]:
        """Return the alphas that a search tries: one None where there is no alpha to choose.

        The default comes first, so that a search which its budget cuts has tried it.
        """
        if self.alpha is None:
            return (None,)
        default = self.alpha.default
        return tuple(sorted(self.alpha.grid, key=lambda alpha: (alpha != default, alpha)))

    def curvature_at(self, alpha: float | None) -> float:
        """Return the maximum over x of |f''(x)| at one alpha, None for the default.

        Infinite where the derivative jumps, as that of relu does. nan where alpha is learned: each
        layer then has its own. relu_smooth_backward has that of its forward pass, relu. That of a
        user's activation is measured. Raises ValueError on an alpha that is not allowed.
        """
        used = self.check_alpha(alpha)
        return math.nan if self.learned else self.curvature(used)

    @property
    def alpha_start(self) -> float:
        """Return where a learned alpha starts."""
        assert self.beta_start is not None
        return self.beta_start**2

    @property
    def smooth_backward(self) -> bool:
        """Say whether the backward pass is not the derivative of the forward pass."""
        return bool(self.forward_of)

    def smoothness_at(self, alpha: float | None) -> float:
        """Return the number of continuous derivatives at one alpha.

        elu is smooth at alpha = 1 alone.
        """
        return 0.0 if self.name == "elu" and alpha != 1.0 else self.smoothness

    def check_alpha(self, alpha: float | None, *, field: str = "alpha") -> float | None:
        """Return the alpha to use: the default where None is given.

        Raises ValueError outside the allowed range.
        """
        if self.alpha is None:
            if alpha is not None:
                raise ValueError(
                    f"{field} must be left out for {self.name}, which takes no alpha, got {alpha:g}"
                )
            return None
        value = self.alpha.default if alpha is None else float(alpha)
        if not (math.isfinite(value) and self.alpha.low <= value <= self.alpha.high):
            raise ValueError(
                f"{field} must be from {self.alpha.low:g} to {self.alpha.high:g} "
                f"for {self.name}, got {value:g}"
            )
        if self.own is not None:
            checked(self.own, value)
        return value


@functools.cache
def checked(own: OwnActivation, alpha: float | None) -> None:
    """Check a user-defined activation at one alpha, once per process."""
    check_activation(own, alpha)


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
        self.own: nn.Module | None = None
        if info.own is not None and info.own.make is not None:
            self.own = info.own.module(alpha)
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
