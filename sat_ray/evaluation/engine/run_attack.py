"""The slot engine: drive any attack over many images through one fixed batch of L slots, and stop each image as soon as it can.

A slot whose image is broken, has visited its last point, or repeats an earlier point exactly takes the next image. A float32 kernel rounds
differently for another batch shape: so every model call has L rows, or fewer where fewer give the same bits
(`sat_ray.evaluation.engine.batch_buckets`), and an
image's verdict does not depend on the slot, the neighbours, the shard or the order.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.attacks.base import Model, require_feasible
from sat_ray.attacks.losses import margin
from sat_ray.data.pixels import to_pixels
from sat_ray.evaluation.engine.batch_buckets import Narrowing, call_rows, pad
from sat_ray.evaluation.engine.scheduler import Flight
from sat_ray.evaluation.engine.verdicts import NEVER, Verdicts
from sat_ray.utils.randomness import Randomness


def require_finite(logits: Tensor, image_ids: Tensor) -> None:
    """Raise ValueError unless logits are (N, K) and finite, naming the images where they are not."""
    bad = _not_finite(logits)
    if bool(bad.any()):
        raise _error(image_ids.cpu()[bad])


def _not_finite(logits: Tensor) -> Tensor:
    if logits.dim() != 2:
        raise ValueError(
            f"model returned shape {tuple(logits.shape)}; allowed: (N, num_classes) logits"
        )
    return (~torch.isfinite(logits).all(dim=1)).cpu()


def _error(image_ids: Tensor, *, of: str = "model", lost: bool = False) -> ValueError:
    ids = list(dict.fromkeys(image_ids.tolist()))[:5]
    if lost:
        return gradient_error(of, ids)
    return ValueError(
        f"{of} returned NaN or inf logits for image ids {ids}; allowed: finite logits"
    )


def gradient_error(what: str, image_ids: list[int]) -> ValueError:
    """Return the error for an attack whose gradient is not finite. what: the model's name."""
    return ValueError(
        f"{what} has a gradient of NaN or infinity for image ids {image_ids}, though its logits "
        "are finite; allowed: a finite gradient (a square root or a norm has none at 0), or the attack square"
    )


def is_finite(x: Tensor) -> Tensor:
    """Return which images (N, C, H, W) hold finite numbers alone, (N,) bool on the CPU."""
    return x.isfinite().flatten(1).all(dim=1).cpu()


def require_finite_runs(
    x_adv: Tensor, logits: Tensor, flight: Flight, *, of: str = "model"
) -> None:
    """Raise ValueError where the logits of an image's first run are not finite.

    Later runs whose logits are not finite are set aside: `require_sound` raises for one of them if
    no earlier run breaks its image. x_adv: the points of the logits, (L, C, H, W); a point that is
    not finite comes from a gradient that was not, and the message says so.
    """
    lost = ~is_finite(x_adv)
    bad = (_not_finite(logits) | lost) & (flight.number >= 0)
    if bool(bad.any()):
        first = bad & (flight.number < flight.queue.images)
        if bool(first.any()):
            ids = flight.state.rng.image_ids.cpu()[first]
            raise _error(ids, of=of, lost=bool((first & lost).any()))
        flight.set_aside(torch.nonzero(bad).flatten(), lost=lost)


def require_sound(flight: Flight, image_ids: Tensor) -> None:
    """Raise ValueError where a run was set aside that counts. image_ids: of the images in flight, in the order they were given."""
    numbers = flight.unsound_numbers()
    if len(numbers):
        lost = bool(torch.isin(numbers, flight.without_gradient).any())
        raise _error(image_ids[numbers % flight.queue.images], lost=lost)


@torch.no_grad()
def slot_logits(
    model: Model, images: Tensor, image_ids: Tensor, *, slots: int, device: torch.device
) -> Tensor:
    """Return logits (N, K) float32 on the CPU from calls of as many rows as the slots have. images: (N, C, H, W) uint8."""
    parts = []
    for first in range(0, len(images), slots):
        rows = images[first : first + slots].to(device)
        logits = model(to_pixels(pad(rows, call_rows(slots)))).float()[: len(rows)].cpu()
        require_finite(logits, image_ids[first : first + slots])
        parts.append(logits)
    return torch.cat(parts)


def run_slots(
    model: Model,
    attack: Attack,
    images: Tensor,
    y: Tensor,
    rng: Randomness,
    *,
    slots: int,
    device: torch.device,
    runs: int = 1,
    target: Tensor | None = None,
    final_iterate: bool = False,
    detect_cycles: bool = True,
) -> Verdicts:
    """Attack every image until a run breaks it, and return runs * N rows: row r * N + i is run r of image i (`by_run` tells which count).

    model: as the attacker sees it, in inference mode on `device`; images: (N, C, H, W) uint8 and y: (N,) int64, on the CPU;
    rng: one stream per image, run r draws from restart rng.restart + r; runs >= 1;
    target: (N, runs) int64, the classes that the runs of a targeted attack move towards;
    final_iterate: only the last point counts, no image stops early; detect_cycles: skip what an exact cycle would visit again.
    """
    flight = Flight(
        attack,
        images,
        y,
        rng,
        target,
        runs=runs,
        slots=slots,
        device=device,
        detect_cycles=detect_cycles,
    )
    watch = _Watch(attack, flight, Verdicts.empty(runs * len(images)), final_iterate=final_iterate)
    calls = Narrowing(model, slots=slots, gradients=attack.differentiates)
    while flight.fill():
        retired = watch.advance(calls.over(flight.number >= 0, flight.state.x_adv))
        if len(retired):
            numbers = flight.number[retired]
            flight.free(retired)
            flight.note_broken(numbers[watch.seen.first_broken_step[numbers] != NEVER])
    require_sound(flight, rng.image_ids)
    return watch.seen


class _Watch:
    """The worst point that each run has visited so far: `seen`, a row per run."""

    def __init__(
        self, attack: Attack, flight: Flight, seen: Verdicts, *, final_iterate: bool
    ) -> None:
        self.attack, self.flight, self.seen, self.final_iterate = (
            attack,
            flight,
            seen,
            final_iterate,
        )

    def advance(self, model: Model) -> Tensor:
        """Score every slot's point, move it, and return the slots that are done."""
        before = self.flight.state
        self.flight.state = after = self.attack.step(model, before)
        assert after.logits is not None and after.zero_share is not None
        require_finite_runs(before.x_adv, after.logits, self.flight)
        require_feasible(
            before.x_adv, before.x, self.attack.threat_model, held=self.flight.number >= 0
        )
        step = before.step.cpu()
        last = step >= self.attack.steps
        wrong = self._record(
            before, after, step, counts=last if self.final_iterate else torch.ones_like(last)
        )
        done = last if self.final_iterate else last | wrong
        if self.flight.cycles is not None:
            period = self.flight.cycles.observe(after.x_adv, after.step, self.flight.seat)
            if self.final_iterate:
                self.flight.state = skip_periods(after, period, steps=self.attack.steps)
            else:
                done = done | (period > 0)
        return torch.nonzero(done & (self.flight.number >= 0)).flatten()

    def _record(self, before: State, after: State, step: Tensor, *, counts: Tensor) -> Tensor:
        """Note the points of the slots that hold a run, and return where the model is wrong at a point that counts, (L,) bool."""
        assert after.logits is not None and after.zero_share is not None
        prediction = after.logits.argmax(dim=1)
        wrong = (prediction != before.y).cpu() & counts
        distance = self.attack.threat_model.distance(before.x_adv, before.x)
        broken_at, margins = torch.where(wrong, step, NEVER), margin(after.logits, before.y)
        points = (prediction, margins, broken_at, torch.ones_like(step), distance, after.zero_share)
        held = torch.nonzero(self.flight.number >= 0).flatten()
        numbers = self.flight.number[held]
        seen, now = (
            self.seen.take(numbers),
            Verdicts(*(values.cpu() for values in points)).take(held),
        )
        worse = counts[held] & ((now.margin < seen.margin) | wrong[held])
        for name in ("prediction", "margin", "distance"):
            setattr(now, name, torch.where(worse, getattr(now, name), getattr(seen, name)))
        now.first_broken_step = torch.where(
            seen.first_broken_step == NEVER, now.first_broken_step, seen.first_broken_step
        )
        now.passes += seen.passes
        now.zero_share = torch.maximum(now.zero_share, seen.zero_share)
        self.seen.write(numbers, now)
        return wrong


def skip_periods(state: State, period: Tensor, *, steps: int) -> State:
    """Advance the step counter of cycling slots by whole periods: the point stays what it would be. period: (L,) int64, 0 for no cycle."""
    left = (steps - state.step.cpu()).clamp_min(0)
    skipped = torch.where(period > 0, left - left % period.clamp_min(1), torch.zeros_like(left))
    return replace(state, step=state.step + skipped.to(state.step.device))
