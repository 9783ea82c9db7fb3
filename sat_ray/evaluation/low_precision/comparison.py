"""A surrogate and its model, compared at every point that some images visit."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec, State
from sat_ray.attacks.base import Model, differentiate
from sat_ray.attacks.losses import margin
from sat_ray.evaluation.engine.batch_buckets import BatchBuckets
from sat_ray.evaluation.engine.finite import is_finite, require_finite
from sat_ray.evaluation.engine.padding import call_rows, pad
from sat_ray.evaluation.engine.scheduler import Scheduler

GRADIENT_EVERY = 10


@dataclass
class Comparison:
    """Hold the P visited points and how the gradients compare.

    row: (P,) int64, the image of a point; low, true: (P,) its margin on the surrogate and on the
    model. pixels: how many entries of gradients were compared; known: those to which the surrogate
    gives a sign; agreeing: those of the known ones with the model's sign.
    """

    row: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    low: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    true: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    agreeing: int = 0
    known: int = 0
    pixels: int = 0

    def last(self) -> Tensor:
        """Return whether each point is the last of its image, (P,) bool."""
        places = torch.arange(len(self.row))
        latest = torch.zeros(int(self.row.max()) + 1, dtype=torch.int64).scatter_reduce(
            0, self.row, places, "amax"
        )
        return latest[self.row] == places

    def add_gradients(self, ours: Tensor, theirs: Tensor) -> None:
        """Count the signs of two gradients, the surrogate's and the model's."""
        self.agreeing += int(((ours != 0) & (ours.sign() == theirs.sign())).sum())
        self.known += int((ours != 0).sum())
        self.pixels += ours.numel()


class Comparer:
    """Attack images through a surrogate, and compare it with its model at every visited point.

    occupied_slots: how many slots, the first ones, ever hold an image; spec: of the attack.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        surrogate: Model,
        model: Model,
        *,
        spec: AttackSpec,
        occupied_slots: int,
    ) -> None:
        self.scheduler = scheduler
        self.surrogate = surrogate
        self.model = model
        self.spec = spec
        self.slots = occupied_slots
        gradients = scheduler.attack.differentiates
        self.surrogate_calls = BatchBuckets(surrogate, slots=scheduler.slots, gradients=gradients)
        self.model_calls = BatchBuckets(model, slots=occupied_slots, gradients=False)

    def run(self) -> Comparison:
        """Return the comparison; an image ends when the model misclassifies it or a point repeats.

        Raises ValueError where numbers are not finite.
        """
        found = Comparison()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        while self.scheduler.fill():
            before = self.scheduler.state
            occupied = self.scheduler.occupied[: self.slots]
            after = self._step(before)
            low, true = self._margins(before, after, occupied)
            if len(parts) % GRADIENT_EVERY == 0:
                found.add_gradients(*self._gradients(before, occupied))
            number = self.scheduler.number[: self.slots]
            parts.append((number[occupied], low[occupied], true[occupied]))
            self._end_runs(before, after, true)
        columns = zip(*parts, strict=True)
        found.row, found.low, found.true = (torch.cat(column) for column in columns)
        return found

    def _step(self, before: State) -> State:
        """Score the point of every slot on the surrogate and move it."""
        calls = self.surrogate_calls.model_for(self.scheduler.occupied, before.x_adv)
        after = self.scheduler.attack.step(calls, before)
        self.scheduler.state = after
        return after

    def _margins(self, before: State, after: State, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins on the surrogate and on the model, (slots,) each, on the CPU."""
        assert after.logits is not None
        points = before.x_adv[: self.slots]
        ids = self._ids(before, occupied)
        with torch.no_grad():
            calls = self.model_calls.model_for(occupied, points)
            exact = calls(pad(points, call_rows(self.slots)))[: self.slots].float()
        copied = after.logits[: self.slots]
        on_device = occupied.to(exact.device)
        require_finite(exact[on_device], ids)
        self._require_in_range(copied[on_device], ids, what="logits")
        y = before.y[: self.slots]
        return margin(copied, y).cpu(), margin(exact, y).cpu()

    def _gradients(self, before: State, occupied: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the surrogate and of the model at the occupied slots."""
        rows = occupied.to(before.y.device)
        ours = differentiate(self.surrogate, before, loss=self.spec.loss)[2][: self.slots][rows]
        first = _first(before, self.slots)
        theirs = differentiate(self.model, first, loss=self.spec.loss)[2][rows]
        self._require_in_range(ours, self._ids(before, occupied), what="gradients")
        return ours, theirs

    def _ids(self, before: State, occupied: Tensor) -> Tensor:
        return before.rng.image_ids[: self.slots].cpu()[occupied]

    def _end_runs(self, before: State, after: State, true: Tensor) -> None:
        """End the runs at their last step, at a broken point, or where a point repeats."""
        done = before.step.cpu() >= self.scheduler.attack.steps
        done[: self.slots] |= true < 0
        cycles = self.scheduler.cycles
        if cycles is not None:
            done |= cycles.observe(after.x_adv, after.step, self.scheduler.entry) > 0
        self.scheduler.end(torch.nonzero(done).flatten())

    def _require_in_range(self, values: Tensor, image_ids: Tensor, *, what: str) -> None:
        """Raise ValueError where logits or gradients (N, ...) of the surrogate are not finite."""
        bad = ~is_finite(values)
        if bool(bad.any()):
            gradient = self.spec.gradient
            instead = "bf16 or float32" if gradient == "fp16" else "float32"
            raise ValueError(
                f"{what} of the {gradient} surrogate must be finite, got NaN or inf for image "
                f"ids {image_ids[bad].tolist()[:5]}: numbers beyond the range of {gradient}; "
                f"use {instead} as the attack's gradient"
            )


def _first(state: State, slots: int) -> State:
    """Return what the first slots need for a gradient."""
    target = None if state.target is None else state.target[:slots]
    return replace(state, x_adv=state.x_adv[:slots], y=state.y[:slots], target=target)
