"""The engine: attack many images through a fixed batch of L slots, and stop each as soon as it can.

A slot whose image is broken, has visited its last point, or repeats an earlier point exactly takes
the next image. A float32 kernel rounds differently for another batch shape: so every model call has
L rows, or fewer where fewer give the same bits (`sat_ray.evaluation.engine.batch_buckets`), and the
verdict on an image does not depend on the slot, the neighbours, the shard or the order.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.attacks.base import Model, require_feasible
from sat_ray.attacks.losses import margin
from sat_ray.data.pixels import to_pixels
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.batch_buckets import BatchBuckets
from sat_ray.evaluation.engine.finite import require_finite
from sat_ray.evaluation.engine.padding import call_rows, pad
from sat_ray.evaluation.engine.scheduler import Scheduler
from sat_ray.evaluation.engine.verdicts import Verdicts
from sat_ray.evaluation.first_broken_step import NEVER


@torch.no_grad()
def slot_logits(
    model: Model, images: Tensor, image_ids: Tensor, *, slots: int, device: torch.device
) -> Tensor:
    """Return logits (N, K) float32 on the CPU from calls of as many rows as there are slots.

    images: (N, C, H, W) uint8.
    """
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
    inputs: AttackInputs,
    *,
    slots: int,
    device: torch.device,
    final_iterate: bool = False,
    detect_cycles: bool = True,
) -> Verdicts:
    """Attack every image until a run breaks it, and return runs * N rows.

    Row r * N + i is run r of image i; `by_run` yields the rows that count.
    model: as the attacker sees it, in inference mode on `device`; final_iterate: only the last
    point counts, no image stops early; detect_cycles: skip what an exact cycle would visit again.
    """
    scheduler = Scheduler(attack, inputs, slots=slots, device=device, detect_cycles=detect_cycles)
    recorder = _Recorder(scheduler, final_iterate=final_iterate)
    buckets = BatchBuckets(model, slots=slots, gradients=attack.differentiates)
    while scheduler.fill():
        done = recorder.step(buckets.model_for(scheduler.occupied, scheduler.state.x_adv))
        if len(done):
            numbers = scheduler.number[done]
            scheduler.end(done)
            broken = recorder.verdicts.first_broken_step[numbers] != NEVER
            scheduler.mark_broken(numbers[broken])
    scheduler.require_sound()
    return recorder.verdicts


class _Recorder:
    """Step an attack and record the worst point that each run has visited so far."""

    def __init__(self, scheduler: Scheduler, *, final_iterate: bool) -> None:
        self.scheduler = scheduler
        self.final_iterate = final_iterate
        self.verdicts = Verdicts.empty(scheduler.inputs.runs * len(scheduler.inputs))

    def step(self, model: Model) -> Tensor:
        """Score the point of every slot, move it, and return the slots that are done."""
        scheduler = self.scheduler
        attack = scheduler.attack
        before = scheduler.state
        after = attack.step(model, before)
        scheduler.state = after
        assert after.logits is not None
        scheduler.require_finite(before.x_adv, after.logits)
        require_feasible(before.x_adv, before.x, attack.threat_model, occupied=scheduler.occupied)
        step = before.step.cpu()
        last = step >= attack.steps
        counts = last if self.final_iterate else torch.ones_like(last)
        wrong = self._record(before, after, step, counts=counts)
        done = last if self.final_iterate else last | wrong
        if scheduler.cycles is not None:
            period = scheduler.cycles.observe(after.x_adv, after.step, scheduler.entry)
            if self.final_iterate:
                scheduler.state = skip_periods(after, period, steps=attack.steps)
            else:
                done = done | (period > 0)
        return torch.nonzero(done & scheduler.occupied).flatten()

    def _record(self, before: State, after: State, step: Tensor, *, counts: Tensor) -> Tensor:
        """Record the points of the occupied slots.

        Return where the model is wrong at a point that counts, (L,) bool.
        """
        assert after.logits is not None
        prediction = after.logits.argmax(dim=1)
        wrong = (prediction != before.y).cpu() & counts
        points = Verdicts(
            prediction=prediction.cpu(),
            margin=margin(after.logits, before.y).cpu(),
            first_broken_step=torch.where(wrong, step, NEVER),
            passes=torch.ones_like(step),
            distance=self.scheduler.attack.threat_model.distance(before.x_adv, before.x).cpu(),
        )
        occupied = torch.nonzero(self.scheduler.occupied).flatten()
        numbers = self.scheduler.number[occupied]
        seen = self.verdicts.take(numbers)
        now = points.take(occupied)
        worse = counts[occupied] & ((now.margin < seen.margin) | wrong[occupied])
        self.verdicts.write(numbers, now.joined_with(seen, worse=worse))
        return wrong


def skip_periods(state: State, period: Tensor, *, steps: int) -> State:
    """Advance the step counter of cycling slots by whole periods; the points stay the same.

    period: (L,) int64, 0 for no cycle.
    """
    left = (steps - state.step.cpu()).clamp_min(0)
    skipped = torch.where(period > 0, left - left % period.clamp_min(1), torch.zeros_like(left))
    return replace(state, step=state.step + skipped.to(state.step.device))
