"""The scheduler: slots are full to the end, and every run continues where it was.

No verdict depends on either.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch_buckets import Recorded
from torch import Tensor

from sat_ray.attacks import APGD, FAB, PGD, Attack, Square, State
from sat_ray.attacks.base import Model
from sat_ray.data.split import Split
from sat_ray.evaluation.engine import scheduler as module
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.run_attack import run_slots
from sat_ray.evaluation.engine.scheduler import OPEN_RUNS_PER_SLOT, SWAP_EVERY, Scheduler
from sat_ray.evaluation.engine.verdicts import Verdicts, by_run
from sat_ray.evaluation.low_precision.surrogate import make_surrogate
from sat_ray.evaluation.low_precision.verification import LowPrecision, run_on_surrogate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

CPU = torch.device("cpu")
SLOTS = 16
BALL = ThreatModel("linf", 40 / 255)
ATTACKS: dict[str, tuple[Attack, dict[str, Any]]] = {
    "pgd": (PGD(threat_model=BALL, steps=40, step_size=8 / 255), {}),
    "the last iterate of pgd": (
        PGD(threat_model=BALL, steps=40, step_size=8 / 255),
        {"final_iterate": True},
    ),
    "pgd of l2": (PGD(threat_model=ThreatModel("l2", 0.8), steps=25, step_size=0.2), {"runs": 2}),
    "targeted apgd": (APGD(threat_model=BALL, steps=20, loss="dlr"), {"runs": 3}),
    "fab": (FAB(threat_model=BALL, steps=6), {"runs": 2}),
    "square": (Square(threat_model=ThreatModel("l2", 0.8), steps=60), {"runs": 2}),
}


def attacked(model: Model, split: Split, attack: Attack, **options: Any) -> Verdicts:
    """Attack a split in slots; a targeted attack moves towards the next classes."""
    options = dict(options)
    runs = options.pop("runs", 1)
    targeted = isinstance(attack, (APGD, FAB))
    target = (split.labels[:, None] + torch.arange(1, runs + 1)) % 10 if targeted else None
    inputs = AttackInputs.of(split, seed=1, target=target, runs=runs)
    return run_slots(model, attack, inputs, slots=SLOTS, device=CPU, **options)


def swap(
    monkeypatch: pytest.MonkeyPatch, *, open_runs_per_slot: int, swap_every: int = SWAP_EVERY
) -> None:
    """Change how schedulers swap. open_runs_per_slot: 1 for never."""
    monkeypatch.setattr(module, "OPEN_RUNS_PER_SLOT", open_runs_per_slot)
    monkeypatch.setattr(module, "SWAP_EVERY", swap_every)


def assert_same(one: Verdicts, other: Verdicts, *, images: int, runs: int) -> None:
    """Require every bit of the rows that count to be the same."""
    for (rows, wanted), (seen, got) in zip(
        by_run(one, images, runs=runs), by_run(other, images, runs=runs), strict=True
    ):
        assert torch.equal(rows, seen)
        for name, values in wanted.__dict__.items():
            assert torch.equal(values, getattr(got, name)), name


@pytest.mark.parametrize(("open_runs_per_slot", "swap_every"), [(2, 1), (3, 7), (8, 4)])
@pytest.mark.parametrize(("attack", "options"), ATTACKS.values(), ids=ATTACKS)
def test_swapping_changes_no_bit_of_any_verdict(
    attack: Attack,
    options: dict[str, Any],
    open_runs_per_slot: int,
    swap_every: int,
    digits_model: Normalized,
    held_out: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swap(monkeypatch, open_runs_per_slot=1)
    expected = attacked(digits_model, held_out, attack, **options)
    swap(monkeypatch, open_runs_per_slot=open_runs_per_slot, swap_every=swap_every)
    swapped: list[int] = []
    swap_out = module.OpenRuns.swap_out

    def counted(self: module.OpenRuns, entries: Tensor, *rest: Any) -> None:
        swapped.append(len(entries))
        swap_out(self, entries, *rest)

    monkeypatch.setattr(module.OpenRuns, "swap_out", counted)
    found = attacked(digits_model, held_out, attack, **options)
    assert_same(expected, found, images=len(held_out), runs=options.get("runs", 1))
    assert swapped, "no run was ever swapped out"


def test_swapping_changes_no_verdict_on_a_surrogate(
    digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate = make_surrogate(digits_model, gradient="bf16", device=CPU)
    how = LowPrecision(surrogate, digits_model, bound=0.2)
    attack, _ = ATTACKS["pgd"]
    inputs = AttackInputs.of(held_out, seed=1, runs=2)
    found = []
    for open_runs_per_slot in (1, OPEN_RUNS_PER_SLOT):
        swap(monkeypatch, open_runs_per_slot=open_runs_per_slot)
        found.append(run_on_surrogate(how, attack, inputs, slots=SLOTS, device=CPU))
    (expected, verified), (other, as_often) = found
    assert_same(expected, other, images=len(held_out), runs=2)
    # a run goes on until its point is verified, so more of its points may be verified
    assert abs(verified - as_often) <= 0.1 * verified


@pytest.mark.parametrize("name", ["pgd", "targeted apgd", "square"])
def test_slots_are_full_to_the_end(
    name: str, digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, options = ATTACKS[name]
    # without detect_cycles False, images of pgd whose points repeat would end at different steps
    options = options | {"detect_cycles": False}
    calls = {}
    for open_runs_per_slot in (1, OPEN_RUNS_PER_SLOT):
        swap(monkeypatch, open_runs_per_slot=open_runs_per_slot)
        model = Recorded(digits_model, fixed_rows=True)
        found = attacked(model, held_out, attack, **options)
        calls[open_runs_per_slot] = len(model.rows)
    passes = sum(
        int(rows.passes.sum())
        for _, rows in by_run(found, len(held_out), runs=options.get("runs", 1))
    )
    assert passes <= SLOTS * calls[OPEN_RUNS_PER_SLOT] <= passes + SLOTS * SWAP_EVERY
    assert calls[OPEN_RUNS_PER_SLOT] < calls[1]


@dataclass(frozen=True)
class Walk:
    """An attack on images of one pixel that only counts.

    Point k of image i in run r is at i + r / 8 + k / 256.
    """

    steps: int
    threat_model: ThreatModel = BALL
    memoryless: bool = False
    differentiates: bool = False

    def start(
        self, x: Tensor, y: Tensor, rng: Randomness, *, target: Tensor | None = None
    ) -> State:
        """Begin at point 0."""
        return State(
            x=x,
            y=y,
            x_adv=(rng.image_ids + rng.restart / 8).view(-1, 1, 1, 1),
            step=torch.zeros_like(y),
            rng=rng,
        )

    def step(self, model: Model, state: State) -> State:
        """Go on by one."""
        return replace(state, x_adv=state.x_adv + 1 / 256, step=state.step + 1)


def pixels(count: int) -> Split:
    """Return images of one pixel; the label of each is its number."""
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    return Split(images, torch.arange(count), torch.arange(count))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 14), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_every_needed_run_visits_all_its_points(
    data: st.DataObject, images: int, runs: int, slots: int, swap_every: int
) -> None:
    steps = 6
    breaks = {
        number: data.draw(st.integers(0, steps + 3), label=f"run {number} breaks at")
        for number in range(runs * images)
    }
    inputs = AttackInputs.of(pixels(images), runs=runs)
    open_runs_per_slot = data.draw(st.integers(1, 4), label="open runs per slot")
    with pytest.MonkeyPatch.context() as patch:
        swap(patch, open_runs_per_slot=open_runs_per_slot, swap_every=swap_every)
        scheduler = Scheduler(Walk(steps), inputs, slots=slots, device=CPU)
        visited: dict[int, list[int]] = {}
        while scheduler.fill():
            state, number = scheduler.state, scheduler.number
            nothing_waits = len(scheduler.open_runs.swapped_out) == 0
            assert nothing_waits or bool(scheduler.occupied.all()), (
                "a slot is empty while a run is swapped out"
            )
            ended, broken = [], []
            for slot, one in enumerate(number.tolist()):
                if one < 0:
                    continue
                run, image = divmod(one, images)
                points = visited.setdefault(one, [])
                points.append(int(state.step[slot]))
                assert float(state.x_adv[slot]) == image + run / 8 + points[-1] / 256, (
                    "the point of another run"
                )
                assert int(state.y[slot]) == image
                if points[-1] == min(steps, breaks[one]):
                    ended.append(slot)
                    broken += [one] if points[-1] == breaks[one] else []
            scheduler.state = scheduler.attack.step(torch.neg, state)
            scheduler.end(torch.tensor(ended, dtype=torch.int64))
            scheduler.mark_broken(torch.tensor(broken, dtype=torch.int64))
    first = [
        next((run for run in range(runs) if breaks[run * images + image] <= steps), runs - 1)
        for image in range(images)
    ]
    for image, last in enumerate(first):
        for run in range(last + 1):
            number = run * images + image
            assert visited[number] == list(range(min(steps, breaks[number]) + 1))
    assert all(points == list(range(len(points))) for points in visited.values())


def test_the_runs_that_have_visited_the_fewest_points_come_first() -> None:
    scheduler = Scheduler(Walk(40), AttackInputs.of(pixels(6)), slots=2, device=CPU)
    found = []
    for _ in range(3 * 2 * SWAP_EVERY):
        assert scheduler.fill()
        found.append(sorted(scheduler.number.tolist()))
        scheduler.state = scheduler.attack.step(torch.neg, scheduler.state)
    turns = [[0, 1], [2, 3], [4, 5], [4, 5], [0, 1], [2, 3]]  # of equals, those in a slot stay
    assert found == [pair for pair in turns for _ in range(SWAP_EVERY)]
