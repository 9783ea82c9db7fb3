"""The allowed set of perturbations.

    S(x) = { x' : ||x' - x||_p <= epsilon } intersected with the pixel box [0, 1]

Symbols: p -> norm, epsilon -> epsilon. Everything lives in [0, 1] pixels, before any normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from sat_ray.utils.bounds import StepSize, fault, shown

if TYPE_CHECKING:  # the settings need no torch; the geometry uses the methods of its tensors
    from torch import Tensor

    from sat_ray.utils.randomness import Randomness

NORMS = ("linf", "l2")
TOLERANCE = 1e-6  # float32 rounding of x + delta near 1 is 6e-8; ten of those fit easily


def as_255ths(value: float, *, rounding: float = 1e-9) -> str:
    """Write a radius as `k/255` where it is one, up to `rounding`, else as a short decimal."""
    fraction = Fraction(round(value * 255 * 4), 4)
    if fraction > 0 and abs(float(fraction) / 255 - value) < rounding:
        text = str(fraction.numerator) if fraction.denominator == 1 else f"{float(fraction):g}"
        return f"{text}/255"
    return f"{value:.6g}"


def length_text(norm: str, value: float) -> str:
    """Write a radius or a step as its norm is quoted: l2 as a short decimal where it is one.

    Anything else is written as `k/255` where it is that.
    """
    plain = f"{value:g}"
    return plain if norm == "l2" and float(plain) == value else as_255ths(value)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *([1] * (like.dim() - 1)))


def _or_one(values: Tensor) -> Tensor:
    return values.where(values > 0, values.new_ones(values.shape))


@dataclass(frozen=True)
class ThreatModel:
    """Describe what an attacker may do to an image, with the geometry that follows from it.

    epsilon is in (0, 1] for linf, any positive number for l2. Raises ValueError on any other value.
    """

    norm: str
    """linf or l2."""
    epsilon: StepSize
    """Radius in [0, 1] pixels; k/255 may be written on the command line."""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"threat_model.norm must be {' or '.join(NORMS)}, got {self.norm!r}")
        if reason := fault(self.epsilon, StepSize):
            raise ValueError(
                f"threat_model.epsilon must be {reason}, in [0, 1] pixels (for example 8/255), "
                f"got {shown(self.epsilon)}"
            )
        if self.norm == "linf" and self.epsilon > 1:
            given = f"{self.epsilon:.12g}"
            raise ValueError(
                f"threat_model.epsilon must be in (0, 1], as pixels lie in [0, 1], got {given}; "
                f"did you mean {given}/255?"
            )

    def __str__(self) -> str:
        return f"{self.norm} {self.text(self.epsilon)}"

    def text(self, value: float) -> str:
        """Write a radius or a step of this norm."""
        return length_text(self.norm, value)

    def check_reach(self, *, steps: int, step_size: float) -> None:
        """Raise ValueError where so many steps of a size cannot reach the edge of the ball."""
        reach = steps * step_size
        if reach < self.epsilon * (1 - 1e-9):
            raise ValueError(
                f"steps * step_size must be at least epsilon, {self.text(self.epsilon)}, got "
                f"{self.text(reach)}: the edge of the ball is out of reach; give a step_size >= "
                f"{self.text(self.epsilon / steps)} at {steps} steps, or more steps"
            )

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return an allowed point near `x_adv`; allowed points come back bit for bit.

        x_adv, x: (N, C, H, W) float32, x in [0, 1]. For linf it is the nearest one. For l2 the ball
        comes first and the box last, which is allowed (the box can only shorten the perturbation)
        but not always the nearest.
        """
        if self.norm == "linf":
            return x_adv.maximum(x - self.epsilon).minimum(x + self.epsilon).clamp(0.0, 1.0)
        distance = _per_image(self.distance(x_adv, x), x)
        shrunk = x + (x_adv - x) * (self.epsilon * (1 - 2e-7) / distance.clamp_min(1e-30))
        return x_adv.where(distance <= self.epsilon, shrunk).clamp(0.0, 1.0)

    def random_start(self, x: Tensor, rng: Randomness, *, step: int | Tensor = 0) -> Tensor:
        """Draw a start for each image, uniform in the ball, then clipped into the box.

        x: (N, C, H, W) float32 in [0, 1]; rng: one stream per image of x; step: counter that
        separates draws (an epoch, say).
        """
        shape = x.shape[1:]
        if self.norm == "linf":
            delta = (
                2.0 * rng.uniform("start", shape, step=step, device=x.device) - 1.0
            ) * self.epsilon
        else:
            direction = rng.normal("start", shape, step=step, device=x.device)
            length = direction.flatten(1).norm(dim=1).clamp_min(1e-12)
            radius = rng.uniform("radius", (1,), step=step, device=x.device).flatten() ** (
                1.0 / x[0].numel()
            )
            delta = direction * _per_image(self.epsilon * radius / length, x)
        return self.project(x + delta, x)

    def steepest_ascent(self, gradient: Tensor) -> Tensor:
        """Return the unit step that increases the loss fastest.

        It is sign(g) for linf and g / ||g|| for l2 (0 where g is 0).
        """
        if self.norm == "linf":
            # sign(NaN) is 0: the image would freeze and look robust
            return gradient.where(gradient.isnan(), gradient.sign())
        # scaling by the largest entry first: tiny gradients would vanish when they are squared
        scale = gradient.flatten(1).abs().amax(dim=1)
        scaled = gradient / _per_image(_or_one(scale), gradient)
        length = scaled.flatten(1).norm(dim=1)
        return scaled / _per_image(_or_one(length), gradient)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the norm of each image's perturbation, (N,) float32 in [0, 1] pixels."""
        delta = (x_adv - x).flatten(1)
        # 150,000 squares summed in float32 are off by more than the tolerance
        return (
            delta.abs().amax(dim=1) if self.norm == "linf" else delta.double().norm(dim=1).float()
        )

    def contains(self, x_adv: Tensor, x: Tensor, *, tolerance: float = TOLERANCE) -> Tensor:
        """Say for each image whether `x_adv` is allowed, (N,) bool; NaN never is."""
        in_box = ((x_adv >= 0.0) & (x_adv <= 1.0)).flatten(1).all(dim=1)
        return in_box & (
            self.distance(x_adv, x) <= self.epsilon + tolerance * max(1.0, self.epsilon)
        )
