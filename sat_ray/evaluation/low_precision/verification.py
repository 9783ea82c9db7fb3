"""The slot engine with gradients of a fast copy and verdicts of the model, in float32.

The attack climbs on the copy (`sat_ray.evaluation.low_precision.surrogate`), which makes it another attack, with a
name of its own. A point counts as broken only
if the model itself misclassifies it in float32. Points whose margin on the copy lies below a bound, and the last point of every image,
wait in a queue until they fill a call; all calls have the same number of rows, so that no verdict depends on neighbours or order. Where the
copy is sure that a point is broken, with a margin below minus the bound, its run ends there; one of which float32 then says otherwise is
flown anew, to the end or until float32 calls a point broken. On a copy of 8 bits, what survives closely, with a float32 margin below the
bound somewhere on its way, is attacked once more with float32 gradients.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.attacks.base import Model, require_feasible
from sat_ray.attacks.losses import margin
from sat_ray.evaluation.engine.batch_buckets import Narrowing, call_rows, has_fixed_rows, pad
from sat_ray.evaluation.engine.run_attack import (
    require_finite,
    require_finite_runs,
    require_sound,
    run_slots,
    skip_periods,
)
from sat_ray.evaluation.engine.scheduler import Flight
from sat_ray.evaluation.engine.verdicts import NEVER, Verdicts
from sat_ray.utils.compile import fusing
from sat_ray.utils.randomness import Randomness

SCORED_ROWS = 64  # of a float32 call at most: a slot flies on until its point is scored, so points should not wait long for a full call
CLOSE_SHARE = 16  # one slot in 16 for close survivors: they are few, and in float32 an empty slot costs what a full one does


@dataclass(frozen=True)
class _Points:
    """Visited points that wait for their float32 score; x_adv and y on the model's device, the rest on the CPU."""

    x_adv: Tensor
    y: Tensor
    image_ids: Tensor
    number: Tensor
    step: Tensor
    passes: Tensor
    distance: Tensor
    sure: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def slice(self, first: int, last: int | None = None) -> "_Points":
        return _Points(*(getattr(self, field.name)[first:last] for field in fields(self)))

    def and_then(self, other: "_Points") -> "_Points":
        return _Points(
            *(
                torch.cat([getattr(self, field.name), getattr(other, field.name)])
                for field in fields(self)
            )
        )


def run_slots_fast(
    fast: Model,
    model: Model,
    attack: Attack,
    images: Tensor,
    y: Tensor,
    rng: Randomness,
    *,
    bound: float,
    again: bool,
    runs: int = 1,
    target: Tensor | None = None,
    **where: Any,
) -> tuple[Verdicts, int]:
    """Attack every image with gradients of a fast copy, close survivors again with the model's, and return verdicts and the points scored.

    again: whether the second attack is asked for (`sat_ray.evaluation.low_precision.surrogate.flies_again`); where:
    slots, of which that attack uses one in
    CLOSE_SHARE, and device; all as of `run_rescored`. passes of a run that was flown twice are those of both flights.
    """
    out, scored = run_rescored(
        fast, model, attack, images, y, rng, bound=bound, runs=runs, target=target, **where
    )
    waiting = torch.arange(len(images))
    for run in range(runs if again else 0):
        first = run * len(images)
        rows = first + waiting
        close = waiting[(out.first_broken_step[rows] == NEVER) & (out.margin[rows] < bound)]
        if len(close):
            towards = None if target is None else target[close, run][:, None]
            narrow = {**where, "slots": max(1, where["slots"] // CLOSE_SHARE)}
            second = run_slots(
                model,
                attack,
                images[close],
                y[close],
                rng.take(close).further(run),
                target=towards,
                **narrow,
            )
            _replace(out, first + close, second)
        waiting = waiting[out.first_broken_step[rows] == NEVER]
    return out, scored


def run_rescored(
    fast: Model,
    model: Model,
    attack: Attack,
    images: Tensor,
    y: Tensor,
    rng: Randomness,
    *,
    bound: float,
    slots: int,
    device: torch.device,
    runs: int = 1,
    target: Tensor | None = None,
    trusting: bool = True,
) -> tuple[Verdicts, int]:
    """Attack every image with gradients of a fast copy alone and return its verdict, and how many points float32 scored.

    fast: what is differentiated, a copy of `model`; bound: logit margin > 0 below which a point is scored again; trusting: whether a
    run ends where the copy is sure; the rest as in `sat_ray.evaluation.engine.run_attack.run_slots`.
    An image that cycles goes on to the point that its last step would reach. passes counts the points up to the verdict; zero_share is not
    measured and stays 0. Among the points that float32 scored, a survivor shows the one of smallest margin.
    """
    flight = Flight(attack, images, y, rng, target, runs=runs, slots=slots, device=device)
    referee = _Referee(model, Verdicts.empty(runs * len(images)), slots=min(slots, SCORED_ROWS))
    calls = Narrowing(fast, slots=slots, gradients=attack.differentiates)
    with fusing(has_fixed_rows(fast)):
        while flight.fill():
            before = flight.state
            flight.state = after = attack.step(calls.over(flight.number >= 0, before.x_adv), before)
            assert after.logits is not None
            of = "the fast copy of the model"
            require_finite_runs(before.x_adv, after.logits, flight, of=of)
            require_feasible(before.x_adv, before.x, attack.threat_model, held=flight.number >= 0)
            done = before.step.cpu() >= attack.steps
            if flight.cycles is not None:
                flight.state = skip_periods(
                    after,
                    flight.cycles.observe(after.x_adv, after.step, flight.seat),
                    steps=attack.steps,
                )
            held, margins = flight.number >= 0, margin(after.logits, before.y).cpu()
            waiting, sure = (
                torch.nonzero(held & (done | (margins < bound))).flatten(),
                margins < -bound,
            )
            if len(waiting):
                referee.ask(_points(before, flight, sure, waiting))
                flight.free(
                    torch.nonzero(
                        done | (sure & trusting) | referee.is_broken(flight.number)
                    ).flatten()
                )
                flight.note_broken(torch.nonzero(referee.out.first_broken_step != NEVER).flatten())
    referee.finish()
    flight.note_broken(torch.nonzero(referee.out.first_broken_step != NEVER).flatten())
    require_sound(flight, rng.image_ids)
    out, scored = referee.out, referee.scored
    wrongly_sure = torch.nonzero(referee.wrongly_sure).flatten()
    if trusting and len(wrongly_sure):
        image, run = wrongly_sure % len(images), wrongly_sure // len(images)
        towards = None if target is None else target[image, run][:, None]
        given: dict[str, Any] = {
            "bound": bound,
            "slots": slots,
            "device": device,
            "target": towards,
            "trusting": False,
        }
        anew, more = run_rescored(
            fast, model, attack, images[image], y[image], rng.take(image).further(run), **given
        )
        _replace(out, wrongly_sure, anew)
        scored += more
    return out, scored


def _replace(out: Verdicts, rows: Tensor, second: Verdicts) -> None:
    """Let the verdicts of a second flight of these rows count; the passes are those of both."""
    second.passes += out.passes[rows]
    out.write(rows, second)


def _points(state: State, flight: Flight, sure: Tensor, slots: Tensor) -> _Points:
    rows = slots.to(state.y.device)
    x_adv = state.x_adv[rows]
    distance = flight.attack.threat_model.distance(x_adv, state.x[rows]).cpu()
    ids, step = state.rng.image_ids[rows].cpu(), state.step[rows].cpu()
    return _Points(
        x_adv,
        state.y[rows],
        ids,
        flight.number[slots],
        step,
        flight.visited[slots],
        distance,
        sure[slots],
    )


class _Referee:
    """Score points in float32, first come first served, a full call at a time, and write what they mean for their runs."""

    def __init__(self, model: Model, out: Verdicts, *, slots: int) -> None:
        self.model, self.out, self.slots = model, out, slots
        self.queue: _Points | None = None
        self.wrongly_sure = torch.zeros(len(out.margin), dtype=torch.bool)
        self.scored = 0

    def ask(self, points: _Points) -> None:
        """Let points wait, and score as many as fill whole calls."""
        self.queue = points if self.queue is None else self.queue.and_then(points)
        while len(self.queue) >= self.slots:
            self._score(self.queue.slice(0, self.slots))
            self.queue = self.queue.slice(self.slots)

    def finish(self) -> None:
        """Score what still waits."""
        if self.queue is not None and len(self.queue):
            self._score(self.queue)
            self.queue = None

    def is_broken(self, number: Tensor) -> Tensor:
        """Tell of each slot's run whether it is known to have broken its image; False for an empty slot."""
        return (number >= 0) & (self.out.first_broken_step[number.clamp_min(0)] != NEVER)

    @torch.no_grad()
    def _score(self, points: _Points) -> None:
        logits = self.model(pad(points.x_adv, call_rows(self.slots))).float()[: len(points)]
        require_finite(logits, points.image_ids)
        self.scored += len(points)
        predictions = logits.argmax(dim=1)
        told = (points.number, points.step, points.passes, points.sure, points.distance)
        found = (predictions != points.y, predictions, margin(logits, points.y))
        columns = (
            values.cpu().numpy() for values in (*told, *found)
        )  # of which single values are read ten times as fast
        out = {name: getattr(self.out, name).numpy() for name in self.out.__dataclass_fields__}
        for number, step, passes, sure, distance, wrong, prediction, near in zip(
            *columns, strict=True
        ):
            if out["first_broken_step"][number] != NEVER:
                continue  # broken by an earlier point, which was scored before this one
            out["passes"][number] = passes
            if wrong:
                out["first_broken_step"][number] = step
            elif sure:
                self.wrongly_sure[number] = True
            if wrong or near < out["margin"][number]:
                out["prediction"][number], out["margin"][number], out["distance"][number] = (
                    prediction,
                    near,
                    distance,
                )
