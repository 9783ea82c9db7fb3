"""Auto-PGD (Croce & Hein 2020, arXiv 2003.01690): PGD with momentum and adaptive step sizes.

z_t     = Project_S( x_t + η_t steepest_ascent(g_t) )
x_{t+1} = Project_S( x_t + a (z_t - x_t) + (1 - a) (x_t - x_{t-1}) )

a = 1 at the first move and 3/4 after it, η_0 = 2 epsilon. At a checkpoint the step size halves, and
the image goes back to its best point, if the loss rose in at most 3/4 of the steps since the last
checkpoint, or if neither the step size nor the best loss has changed since.
"""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sat_ray.attacks.base import Model, State, differentiate, zero_share
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

MOMENTUM = 0.75
RISING = 0.75
# windows between checkpoints, as shares of the steps
FIRST_WINDOW = 0.22
SHRINK = 0.03
SHORTEST_WINDOW = 0.06


@dataclass(frozen=True, kw_only=True)
class APGDState(State):
    """The state of Auto-PGD in each slot.

    previous, best, best_gradient: (L, C, H, W); best_loss, loss_at_check, last_loss, step_size:
    (L,) float32; rises: (L,) int64, rising steps since the last checkpoint; halved: (L,) bool,
    whether that checkpoint halved the step size.
    """

    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    loss_at_check: Tensor
    last_loss: Tensor
    step_size: Tensor
    rises: Tensor
    halved: Tensor


@functools.cache
def windows(steps: int) -> tuple[int, ...]:
    """Return, for each point 0..steps, the length of the window that a checkpoint closes there.

    It is 0 where there is no checkpoint.
    """
    closes = [0] * (steps + 1)
    window = max(int(FIRST_WINDOW * steps), 1)
    shortest = max(int(SHORTEST_WINDOW * steps), 1)
    shrink = max(int(SHRINK * steps), 1)
    at = window
    while at <= steps:
        closes[at] = window
        window = max(window - shrink, shortest)
        at += window
    return tuple(closes)


@functools.cache
def _windows_on(device: torch.device, steps: int) -> Tensor:
    return torch.tensor(windows(steps), device=device)


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class APGD:
    """Ascend a loss without a step size to choose.

    steps >= 1; loss: one of `sat_ray.attacks.loss_names.ATTACK_LOSSES`.
    """

    threat_model: ThreatModel
    steps: int
    use_random_start: bool = True
    loss: str = "cross_entropy"
    memoryless: ClassVar[bool] = False
    differentiates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be an integer >= 1, got {self.steps}")

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None
    ) -> APGDState:
        """Place every image at its start, with nothing remembered yet."""
        x_adv = self.threat_model.random_start(x, rng) if self.use_random_start else x.clone()
        lowest = torch.full(y.shape, -torch.inf, dtype=torch.float32, device=x.device)
        return APGDState(
            x=x,
            y=y,
            x_adv=x_adv,
            step=torch.zeros_like(y),
            rng=rng,
            target=target,
            previous=x_adv.clone(),
            best=x_adv.clone(),
            best_gradient=torch.zeros_like(x),
            best_loss=lowest,
            loss_at_check=lowest.clone(),
            last_loss=-lowest,
            step_size=torch.full_like(lowest, 2 * self.threat_model.epsilon),
            rises=torch.zeros_like(y),
            halved=torch.ones_like(y, dtype=torch.bool),
        )

    def step(self, model: Model, state: State) -> APGDState:
        """Score the current points, remember the best, and move."""
        assert isinstance(state, APGDState)
        logits, loss, gradient = differentiate(model, state, loss=self.loss)
        state = _remember(state, loss, gradient)
        state, stuck = self._check(state)
        at = torch.where(_wide(stuck), state.best, state.x_adv)
        uphill = self.threat_model.steepest_ascent(
            torch.where(_wide(stuck), state.best_gradient, gradient)
        )
        z = self.threat_model.project(at + _wide(state.step_size) * uphill, state.x)
        a = _wide(torch.full_like(loss, MOMENTUM).masked_fill(state.step == 0, 1.0))
        moved = self.threat_model.project(
            at + a * (z - at) + (1 - a) * (at - state.previous), state.x
        )
        return replace(
            state,
            x_adv=moved,
            previous=at,
            step=state.step + 1,
            logits=logits,
            zero_share=zero_share(gradient),
        )

    def _check(self, state: APGDState) -> tuple[APGDState, Tensor]:
        """Halve the step size of the slots that are stuck at a checkpoint, and return these."""
        window = _windows_on(state.step.device, self.steps)[state.step.clamp_max(self.steps)]
        here = window > 0
        stuck = here & (
            (state.rises <= RISING * window)
            | (~state.halved & (state.loss_at_check >= state.best_loss))
        )
        checked = replace(
            state,
            step_size=torch.where(stuck, state.step_size / 2, state.step_size),
            loss_at_check=torch.where(here, state.best_loss, state.loss_at_check),
            halved=torch.where(here, stuck, state.halved),
            rises=torch.where(here, torch.zeros_like(state.rises), state.rises),
        )
        return checked, stuck


def _remember(state: APGDState, loss: Tensor, gradient: Tensor) -> APGDState:
    better = loss > state.best_loss
    best_loss = torch.where(better, loss, state.best_loss)
    return replace(
        state,
        best=torch.where(_wide(better), state.x_adv, state.best),
        best_gradient=torch.where(_wide(better), gradient, state.best_gradient),
        best_loss=best_loss,
        loss_at_check=torch.where(state.step == 0, best_loss, state.loss_at_check),
        last_loss=loss,
        rises=state.rises + (loss > state.last_loss),
    )
