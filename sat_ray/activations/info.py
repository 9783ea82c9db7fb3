"""What is known about one activation: formula, derivative, smoothness, alpha and its range."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is loaded where something is computed; names and facts are light
    from sat_ray.activations.functions import Function
    from sat_ray.activations.user_defined import UserDefinedActivation


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
    """The properties of one activation.

    smoothness: number of continuous derivatives, inf for analytic functions, nan where it is
    unknown; curvature(alpha): max |f''|, also of a learned alpha; beta_start: where a learned
    alpha = beta**2 starts, None where alpha is not learned; forward_of: the activation whose
    forward pass this one shares; user_defined: set for an activation of the user's own.
    """

    name: str
    formula: str
    derivative_formula: str
    smoothness: float
    curvature: Callable[[float | None], float]
    reference: str
    alpha: AlphaRange | None = None
    beta_start: float | None = None
    forward_of: str = ""
    user_defined: "UserDefinedActivation | None" = None

    @property
    def function(self) -> "Function":
        """Return the activation as a function (x, alpha) of tensors of any shape."""
        from sat_ray.activations.functions import FUNCTIONS

        return FUNCTIONS[self.name] if self.user_defined is None else self.user_defined.apply

    @property
    def derivative(self) -> "Function":
        """Return its derivative as a function (x, alpha) of tensors of any shape."""
        from sat_ray.activations.functions import SLOPES

        return SLOPES[self.name] if self.user_defined is None else self.user_defined.slope

    @property
    def learned(self) -> bool:
        """Say whether alpha is learned, one per layer."""
        return self.beta_start is not None

    @property
    def forward_name(self) -> str:
        """Name the activation that computes the same forward pass, itself in most cases."""
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
        layer then has its own. relu_smooth_backward has that of its forward pass, relu.
        That of a user's activation is measured. Raises ValueError on an alpha that is not allowed.
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

    def check_alpha(self, alpha: float | None, *, field: str = "alpha") -> float | None:
        """Return the alpha to use, the default for None.

        Raises ValueError where it is outside the allowed range.
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
        if self.user_defined is not None:
            check_user_defined(self.user_defined, value)
        return value


@functools.cache
def check_user_defined(user_defined: "UserDefinedActivation", alpha: float | None) -> None:
    """Check a user-defined activation at one alpha, once in a process; raise ValueError."""
    from sat_ray.activations.user_defined import check_activation

    check_activation(user_defined, alpha)
