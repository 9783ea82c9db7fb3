"""The engine with gradients of a surrogate and verdicts of the model, in float32.

An attack that follows the gradients of a surrogate (`sat_ray.evaluation.low_precision.surrogate`)
is another attack, with a name of its own. A point counts as broken only if the model itself
misclassifies it in float32.

- Points whose margin on the surrogate lies below a bound, and the last point of every image, wait
  in a queue until they fill a call. All calls have the same number of rows, so that no verdict
  depends on neighbours or order.
- Where the surrogate is confident that a point is broken, with a margin below minus the bound, the
  run ends. If float32 does not confirm it, the run is repeated to the end, or until float32 finds
  a broken point.
- With bfloat16, close survivors are attacked once more with float32 gradients. A close survivor
  has a float32 margin below the bound at some point of its path.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.attacks.base import Model, require_feasible
from sat_ray.attacks.losses import margin
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.batch_buckets import BatchBuckets
from sat_ray.evaluation.engine.finite import require_finite
from sat_ray.evaluation.engine.padding import call_rows, has_fixed_rows, pad
from sat_ray.evaluation.engine.run_attack import run_slots, skip_periods
from sat_ray.evaluation.engine.scheduler import Scheduler
from sat_ray.evaluation.engine.verdicts import Verdicts
from sat_ray.evaluation.first_broken_step import NEVER
from sat_ray.utils.compile import fusing

# Rows of a float32 call at most: a run goes on until its point is verified, so points should not
# wait long for a full call.
VERIFIED_ROWS = 64
# One slot in 16 for close survivors: they are few, and in float32 an empty slot costs as much as a
# full one.
CLOSE_SHARE = 16


@dataclass(frozen=True)
class LowPrecision:
    """How an attack uses a surrogate.

    surrogate: what is differentiated, a copy of `model`; model: what decides, in float32; bound:
    logit margin > 0 below which a point is verified; repeat_close: whether close survivors are
    attacked again (`sat_ray.evaluation.low_precision.surrogate.repeats_close_survivors`).
    """

    surrogate: Model
    model: Model
    bound: float
    repeat_close: bool = False


def run_verified(
    how: LowPrecision,
    attack: Attack,
    inputs: AttackInputs,
    *,
    slots: int,
    device: torch.device,
) -> tuple[Verdicts, int]:
    """Attack every image through a surrogate, and close survivors again through the model.

    Return the verdicts and how many points were verified. The second attack uses one slot in
    CLOSE_SHARE. The passes of a repeated run are those of both attempts.
    """
    out, verified = run_on_surrogate(how, attack, inputs, slots=slots, device=device)
    images = len(inputs)
    waiting = torch.arange(images)
    for run in range(inputs.runs if how.repeat_close else 0):
        first = run * images
        rows = first + waiting
        survived = out.first_broken_step[rows] == NEVER
        close = waiting[survived & (out.margin[rows] < how.bound)]
        if len(close):
            repeated = run_slots(
                how.model,
                attack,
                inputs.single_runs(close, run),
                slots=max(1, slots // CLOSE_SHARE),
                device=device,
            )
            _replace(out, first + close, repeated)
        waiting = waiting[out.first_broken_step[rows] == NEVER]
    return out, verified


def run_on_surrogate(
    how: LowPrecision,
    attack: Attack,
    inputs: AttackInputs,
    *,
    slots: int,
    device: torch.device,
    trust_confident: bool = True,
) -> tuple[Verdicts, int]:
    """Attack every image through the surrogate alone.

    Return the verdicts, as `sat_ray.evaluation.engine.run_attack.run_slots` does, and how many
    points were verified. trust_confident: whether a run ends where the surrogate is confident.
    An image that cycles continues to the point that its last step would reach. passes counts the
    points up to the verdict. A survivor shows the verified point of smallest margin.
    """
    scheduler = Scheduler(attack, inputs, slots=slots, device=device)
    verifier = _Verifier(how.model, scheduler, rows=min(slots, VERIFIED_ROWS))
    buckets = BatchBuckets(how.surrogate, slots=slots, gradients=attack.differentiates)
    with fusing(has_fixed_rows(how.surrogate)):
        while scheduler.fill():
            _step(scheduler, verifier, buckets, how, trust_confident=trust_confident)
    verifier.finish()
    scheduler.mark_broken(verifier.broken_runs())
    scheduler.require_sound()
    out = verifier.verdicts
    verified = verifier.verified
    wrong = torch.nonzero(verifier.wrongly_confident).flatten()
    if trust_confident and len(wrong):
        again = inputs.single_runs(wrong % len(inputs), wrong // len(inputs))
        repeated, more = run_on_surrogate(
            how, attack, again, slots=slots, device=device, trust_confident=False
        )
        _replace(out, wrong, repeated)
        verified += more
    return out, verified


def _step(
    scheduler: Scheduler,
    verifier: "_Verifier",
    buckets: BatchBuckets,
    how: LowPrecision,
    *,
    trust_confident: bool,
) -> None:
    """Score the point of every slot on the surrogate, move it, and end the runs that are done."""
    attack = scheduler.attack
    before = scheduler.state
    occupied = scheduler.occupied
    after = attack.step(buckets.model_for(occupied, before.x_adv), before)
    scheduler.state = after
    assert after.logits is not None
    scheduler.require_finite(before.x_adv, after.logits, of="the surrogate of the model")
    occupied = scheduler.occupied
    require_feasible(before.x_adv, before.x, attack.threat_model, occupied=occupied)
    done = before.step.cpu() >= attack.steps
    if scheduler.cycles is not None:
        period = scheduler.cycles.observe(after.x_adv, after.step, scheduler.entry)
        scheduler.state = skip_periods(after, period, steps=attack.steps)
    margins = margin(after.logits, before.y).cpu()
    confident = margins < -how.bound
    doubtful = torch.nonzero(occupied & (done | (margins < how.bound))).flatten()
    if len(doubtful):
        verifier.submit(before, confident, doubtful)
        ended = done | (confident & trust_confident) | verifier.is_broken(scheduler.number)
        scheduler.end(torch.nonzero(ended).flatten())
        scheduler.mark_broken(verifier.broken_runs())


def _replace(out: Verdicts, rows: Tensor, repeated: Verdicts) -> None:
    """Replace verdicts by those of a repeated attack; the passes are those of both."""
    repeated.passes += out.passes[rows]
    out.write(rows, repeated)


@dataclass(frozen=True)
class _Points:
    """Visited points that wait for their float32 score.

    x_adv and y are on the model's device, the rest on the CPU.
    """

    x_adv: Tensor
    y: Tensor
    image_ids: Tensor
    number: Tensor
    step: Tensor
    passes: Tensor
    distance: Tensor
    confident: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def slice(self, first: int, last: int | None = None) -> "_Points":
        return _Points(*(getattr(self, field.name)[first:last] for field in fields(self)))

    def joined_with(self, other: "_Points") -> "_Points":
        pairs = ((getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return _Points(*map(torch.cat, pairs))


class _Verifier:
    """Score points in float32, in the order they come, and record the verdicts on their runs.

    Points wait until they fill a call of `rows` rows.
    """

    def __init__(self, model: Model, scheduler: Scheduler, *, rows: int) -> None:
        self.model = model
        self.scheduler = scheduler
        self.rows = rows
        runs = scheduler.inputs.runs * len(scheduler.inputs)
        self.verdicts = Verdicts.empty(runs)
        self.wrongly_confident = torch.zeros(runs, dtype=torch.bool)
        self.verified = 0
        self.queue: _Points | None = None

    def submit(self, state: State, confident: Tensor, slots: Tensor) -> None:
        """Queue the points of these slots, and score as many as fill whole calls."""
        points = self._points(state, confident, slots)
        self.queue = points if self.queue is None else self.queue.joined_with(points)
        while len(self.queue) >= self.rows:
            self._score(self.queue.slice(0, self.rows))
            self.queue = self.queue.slice(self.rows)

    def finish(self) -> None:
        """Score the points that still wait."""
        if self.queue is not None and len(self.queue):
            self._score(self.queue)
            self.queue = None

    def broken_runs(self) -> Tensor:
        """Return the runs that are known to have broken their images, (M,) int64."""
        return torch.nonzero(self.verdicts.first_broken_step != NEVER).flatten()

    def is_broken(self, number: Tensor) -> Tensor:
        """Return for each run whether it is known to have broken its image; False for -1."""
        return (number >= 0) & (self.verdicts.first_broken_step[number.clamp_min(0)] != NEVER)

    def _points(self, state: State, confident: Tensor, slots: Tensor) -> _Points:
        rows = slots.to(state.y.device)
        x_adv = state.x_adv[rows]
        threat_model = self.scheduler.attack.threat_model
        return _Points(
            x_adv=x_adv,
            y=state.y[rows],
            image_ids=state.rng.image_ids[rows].cpu(),
            number=self.scheduler.number[slots],
            step=state.step[rows].cpu(),
            passes=self.scheduler.visited[slots],
            distance=threat_model.distance(x_adv, state.x[rows]).cpu(),
            confident=confident[slots],
        )

    @torch.no_grad()
    def _score(self, points: _Points) -> None:
        logits = self.model(pad(points.x_adv, call_rows(self.rows))).float()[: len(points)]
        require_finite(logits, points.image_ids)
        self.verified += len(points)
        predictions = logits.argmax(dim=1)
        found = (predictions != points.y, predictions, margin(logits, points.y))
        known = (points.number, points.step, points.passes, points.confident, points.distance)
        # single values are read from numpy arrays ten times as fast as from tensors
        columns = (values.cpu().numpy() for values in (*known, *found))
        out = {field.name: getattr(self.verdicts, field.name).numpy() for field in fields(Verdicts)}
        for number, step, passes, confident, distance, wrong, prediction, near in zip(
            *columns, strict=True
        ):
            if out["first_broken_step"][number] != NEVER:
                continue  # broken by an earlier point, which was scored before this one
            out["passes"][number] = passes
            if wrong:
                out["first_broken_step"][number] = step
            elif confident:
                self.wrongly_confident[number] = True
            if wrong or near < out["margin"][number]:
                out["prediction"][number] = prediction
                out["margin"][number] = near
                out["distance"][number] = distance
