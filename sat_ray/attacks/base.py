"""The protocol of attacks: steppers over slots that change no model and hold no state."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sat_ray.attacks.losses import attack_loss
from sat_ray.threat import TOLERANCE, ThreatModel
from sat_ray.utils.compile import fusable
from sat_ray.utils.errors import ReportedError
from sat_ray.utils.randomness import Randomness

Model = Callable[[Tensor], Tensor]
NO_GRADIENT = (
    "has no gradient at its input (detached, or under no_grad); "
    "use a differentiable model, or the attack square"
)


class InfeasiblePointError(ReportedError):
    """An attack visited a point outside its threat model: a bug in the attack."""


class NoGradientError(ValueError):
    """The model's output does not depend on its input through autograd.

    Only attacks without gradients can be used.
    """


@dataclass(frozen=True)
class State:
    """Hold the state of L slots; row i of every field belongs to the same image.

    x, x_adv: (L, C, H, W) float32 in [0, 1]; y: (L,) int64, in training perhaps (L, K) soft labels;
    step: (L,) int64, the number of the point in x_adv (0 = the start); target: (L,) int64, the
    class that a targeted attack moves towards, else None; logits: (L, K) float32 at the point
    scored by the latest step; zero_share: (L,) share of that point's gradient that is exactly 0.
    """

    x: Tensor
    y: Tensor
    x_adv: Tensor
    step: Tensor
    rng: Randomness
    target: Tensor | None = None
    logits: Tensor | None = None
    zero_share: Tensor | None = None

    def take(self, rows: Tensor) -> "State":
        """Return these rows, copied."""
        changed = {name: value[rows] for name, value in self._tensors()}
        return replace(self, **changed, rng=self.rng.take(rows))

    def put(self, slots: Tensor, other: "State", rows: Tensor) -> "State":
        """Return this state with `slots` overwritten by the `rows` of `other`.

        Fields that one of them lacks, such as scores, are not changed.
        """
        for name, value in self._tensors():
            new = getattr(other, name)
            if isinstance(new, Tensor):
                value.index_copy_(0, slots, new[rows])
        return replace(self, rng=self.rng.put(slots, other.rng, rows))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value


class Attack(Protocol):
    """Start images in slots, then score and move them one step at a time.

    `steps` moves visit steps + 1 points; `step` scores the point in x_adv (its logits) before it
    moves it. Rows never influence each other. memoryless: the move is a function of the point
    alone, so that a point seen twice means a cycle. differentiates: the move needs the model's
    gradient.
    """

    @property
    def threat_model(self) -> ThreatModel:
        """The allowed set."""
        ...

    @property
    def steps(self) -> int:
        """Moves per image."""
        ...

    @property
    def memoryless(self) -> bool:
        """Whether the next point depends on the current one alone."""
        ...

    @property
    def differentiates(self) -> bool:
        """Whether a step needs the model's gradient."""
        ...

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None
    ) -> State:
        """Place every image at point 0."""
        ...

    def step(self, model: Model, state: State) -> State:
        """Score the current points and move on."""
        ...


def differentiate(
    model: Model, state: State, *, loss: str, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (L, K), loss (L,) and the loss's gradient at the current points.

    All are float32 and detached from the graph. Raises NoGradientError where autograd finds no way
    from the output to the input.
    """
    point = state.x_adv.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(point)
        if not logits.requires_grad:
            raise NoGradientError(f"model {NO_GRADIENT}")
        losses = attack_loss(
            logits, state.y, loss=loss, target=state.target, label_smoothing=label_smoothing
        )
        (gradient,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
    if gradient is None:
        raise NoGradientError(f"model {NO_GRADIENT}")
    return logits.detach().float(), losses.detach(), gradient


def zero_share(gradient: Tensor) -> Tensor:
    """Return the share of each image's gradient that is exactly 0, (L,).

    sign(0) = 0 freezes those pixels.
    """
    return (gradient == 0).flatten(1).float().mean(dim=1)


def require_inference_mode(model: Model) -> None:
    """Raise ValueError for a module (or submodule) in train mode.

    There, BatchNorm would mix the images and change its statistics.
    """
    if isinstance(model, nn.Module):
        training = [
            name or "the model" for name, module in model.named_modules() if module.training
        ]
        if training:
            raise ValueError(
                f"model must be in inference mode, got train mode ({training[0]}); "
                "call model.eval() before attacking or evaluating it"
            )


def require_images(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless x is (N, C, H, W) float32 in [0, 1] and y is (N,) whole numbers."""
    if x.dim() != 4 or x.dtype != torch.float32:
        raise ValueError(
            f"x must be (N, C, H, W) float32 in [0, 1], got {tuple(x.shape)} {x.dtype}"
        )
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(f"y must be ({len(x)},) int64 labels, got {tuple(y.shape)} {y.dtype}")
    if len(x) and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"x must lie in [0, 1], got [{x.min():g}, {x.max():g}]; "
            "divide uint8 images by 255 and do not normalise"
        )


def require_feasible(
    x_adv: Tensor, x: Tensor, threat_model: ThreatModel, *, occupied: Tensor | None = None
) -> None:
    """Raise InfeasiblePointError unless every image is allowed.

    occupied: (N,) bool, the slots that are checked; None for all.
    """
    left = ~_contained(threat_model, x_adv, x)
    if occupied is not None:
        left &= occupied.to(left.device)
    if bool(left.any()):
        worst = threat_model.distance(x_adv, x)[left].max().item()
        raise InfeasiblePointError(
            f"{int(left.sum())} of {len(x)} adversarial images leave {threat_model} "
            f"(largest distance {worst:.6g}, tolerance {TOLERANCE:g}) or the box [0, 1]"
        )


@fusable
def _contained(threat_model: ThreatModel, x_adv: Tensor, x: Tensor) -> Tensor:
    return threat_model.contains(x_adv, x)
