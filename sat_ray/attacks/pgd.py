"""Projected gradient descent (Madry et al. 2018).

x_0     = x + noise (or x)
x_{t+1} = Project_S( x_t + step_size * steepest_ascent( grad_x sum_i loss(f(x_t), y)_i ) )

FGSM, PGD-1 ("fast"), PGD-k and PGD-200 are settings of one stepper.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sat_ray.attacks.base import (
    Model,
    State,
    differentiate,
    require_feasible,
    require_images,
    require_inference_mode,
    zero_share,
)
from sat_ray.attacks.losses import cross_entropy
from sat_ray.threat import ThreatModel
from sat_ray.utils.compile import fusable
from sat_ray.utils.randomness import Randomness


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Step along the gradient's steepest ascent and project back.

    loss: what is ascended, one of `sat_ray.attacks.loss_names.ATTACK_LOSSES`; steps >= 1;
    step_size > 0 in [0, 1] pixels with steps * step_size >= epsilon, else parts of the ball are out
    of reach. label_smoothing: of the cross-entropy; training alone sets it.
    """

    threat_model: ThreatModel
    steps: int
    step_size: float
    use_random_start: bool = True
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    memoryless: ClassVar[bool] = True
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(
                f"step_size must be a number > 0, in [0, 1] pixels, got {self.step_size:g}"
            )
        self.threat_model.check_reach(steps=self.steps, step_size=self.step_size)

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None, step: int = 0
    ) -> State:
        """Place every image at its start.

        y: (N,) int64, or (N, K) float32 soft labels; step: counter of the noise, so that each
        training epoch draws anew.
        """
        x_adv = (
            self.threat_model.random_start(x, rng, step=step)
            if self.use_random_start
            else x.clone()
        )
        steps_done = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return State(x=x, y=y, x_adv=x_adv, step=steps_done, rng=rng, target=target)

    def step(self, model: Model, state: State) -> State:
        """Score the current points and move each one step uphill."""
        logits, _, gradient = differentiate(
            model, state, loss=self.loss, label_smoothing=self.label_smoothing
        )
        moved, zeros = _moved(self.threat_model, self.step_size, gradient, state.x_adv, state.x)
        return replace(state, x_adv=moved, step=state.step + 1, logits=logits, zero_share=zeros)

    def run(self, model: Model, x: Tensor, y: Tensor, rng: Randomness, *, step: int = 0) -> Tensor:
        """Return the last iterate of every image; no check, no synchronisation with the host."""
        state = self.start(x, y, rng, step=step)
        for _ in range(self.steps):
            state = self.step(model, state)
        return state.x_adv


@fusable
def _moved(
    threat_model: ThreatModel, step_size: float, gradient: Tensor, x_adv: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the next points, and the share of each gradient that is 0."""
    uphill = threat_model.steepest_ascent(gradient)
    return threat_model.project(x_adv + step_size * uphill, x), zero_share(gradient)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    threat_model: ThreatModel,
    step_size: float,
    steps: int,
    random_start: bool = True,
    restarts: int = 1,
    rng: Randomness | None = None,
) -> Tensor:
    """Attack every image and return the last iterate, x_adv (N, C, H, W) float32 in [0, 1].

    model: [0, 1] pixels -> logits, in inference mode; x: (N, C, H, W) float32 in [0, 1]; y: (N,)
    int64. Among restarts a misclassified iterate is preferred, then the higher loss. rng: one
    stream per image, default seed 0 with ids 0..N-1. Raises ValueError on bad input,
    InfeasiblePointError if an iterate leaves the threat model.
    """
    require_inference_mode(model)
    require_images(x, y)
    if restarts < 1:
        raise ValueError(f"restarts must be an integer >= 1, got {restarts}")
    attack = PGD(
        threat_model=threat_model, steps=steps, step_size=step_size, use_random_start=random_start
    )
    rng = rng or Randomness.of(0, torch.arange(len(x), device=x.device))
    best = attack.run(model, x, y, rng)
    if restarts > 1:
        best_score = _score(model, best, y)
        for restart in range(1, restarts):
            other = attack.run(model, x, y, rng.with_restart(restart))
            score = _score(model, other, y)
            better = score > best_score
            best = torch.where(better.view(-1, 1, 1, 1), other, best)
            best_score = torch.maximum(score, best_score)
    require_feasible(best, x, threat_model)
    return best


@torch.no_grad()
def _score(model: Model, x_adv: Tensor, y: Tensor) -> Tensor:
    """Return scores of iterates: success first, loss second.

    arctan keeps the loss below 2, so that no loss outweighs a success.
    """
    logits = model(x_adv)
    broken = (logits.argmax(dim=1) != y).double()
    return 2.0 * broken + torch.atan(cross_entropy(logits, y).double())
