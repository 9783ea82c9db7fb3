"""Who flies when: slots are full to the end, every run takes up where it was,
and no verdict depends on either.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sat_ray.attacks import APGD, PGD, Attack, Square, State
from sat_ray.attacks.base import Model
from sat_ray.data.split import Split
from sat_ray.evaluation.engine import scheduler as module
from sat_ray.evaluation.engine.run_attack import run_slots
from sat_ray.evaluation.engine.scheduler import SEATS_PER_SLOT, TURN, Flight
from sat_ray.evaluation.engine.verdicts import Verdicts, by_run
from sat_ray.evaluation.low_precision.surrogate import fast_copy
from sat_ray.evaluation.low_precision.verification import run_rescored
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
    "square": (Square(threat_model=ThreatModel("l2", 0.8), steps=60), {"runs": 2}),
}


@dataclass
class Counted:
    """A model that always wants full calls, and counts them."""

    model: Model
    fixed_rows: bool = True
    calls: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.model(x)


def attacked(model: Model, split: Split, attack: Attack, **options: Any) -> Verdicts:
    """Attack a split in slots, where there are targets towards the next classes."""
    runs = options.get("runs", 1)
    target = (
        (split.labels[:, None] + torch.arange(1, runs + 1)) % 10
        if isinstance(attack, APGD)
        else None
    )
    rng = Randomness(1, split.image_ids)
    return run_slots(
        model,
        attack,
        split.images,
        split.labels,
        rng,
        slots=SLOTS,
        device=CPU,
        target=target,
        **options,
    )


def parking(monkeypatch: pytest.MonkeyPatch, *, seats_per_slot: int, turn: int = TURN) -> None:
    """Let flights park otherwise. seats_per_slot: 1 for never."""
    monkeypatch.setattr(module, "SEATS_PER_SLOT", seats_per_slot)
    monkeypatch.setattr(module, "TURN", turn)


def assert_same(one: Verdicts, other: Verdicts, *, images: int, runs: int) -> None:
    """Require every bit of the rows that count to be the same."""
    for (rows, wanted), (seen, got) in zip(
        by_run(one, images, runs=runs), by_run(other, images, runs=runs), strict=True
    ):
        assert torch.equal(rows, seen)
        for name, values in wanted.__dict__.items():
            assert torch.equal(values, getattr(got, name)), name


@pytest.mark.parametrize(("seats_per_slot", "turn"), [(2, 1), (3, 7), (8, 4)])
@pytest.mark.parametrize(("attack", "options"), ATTACKS.values(), ids=ATTACKS)
def test_parking_changes_no_bit_of_any_verdict(
    attack: Attack, options: dict[str, Any], seats_per_slot: int, turn: int,
    digits_model: Normalized, held_out: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    parking(monkeypatch, seats_per_slot=1)
    expected = attacked(digits_model, held_out, attack, **options)
    parking(monkeypatch, seats_per_slot=seats_per_slot, turn=turn)
    parked: list[int] = []
    park = module.Seats.park
    monkeypatch.setattr(
        module.Seats,
        "park",
        lambda self, seats, *rest: (parked.append(len(seats)), park(self, seats, *rest))[1],
    )
    found = attacked(digits_model, held_out, attack, **options)
    assert_same(expected, found, images=len(held_out), runs=options.get("runs", 1))
    assert parked, "no run was ever parked"


def test_parking_changes_no_verdict_of_a_fast_copy(
    digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, (attack, _) = fast_copy(digits_model, gradient="bf16", device=CPU), ATTACKS["pgd"]
    inputs = (
        copy,
        digits_model,
        attack,
        held_out.images,
        held_out.labels,
        Randomness(1, held_out.image_ids),
    )
    found = []
    for seats_per_slot in (1, SEATS_PER_SLOT):
        parking(monkeypatch, seats_per_slot=seats_per_slot)
        found.append(run_rescored(*inputs, bound=0.2, slots=SLOTS, device=CPU, runs=2))
    (expected, scored), (other, as_often) = found
    assert_same(expected, other, images=len(held_out), runs=2)
    assert (
        abs(scored - as_often) <= 0.1 * scored
    )  # a slot flies on until its point is scored, and more points may be asked about


@pytest.mark.parametrize(
    "name", ["pgd", "targeted apgd", "square"]
)  # of pgd's, images whose points repeat end at steps of their own
def test_slots_are_full_to_the_end(
    name: str, digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, options = ATTACKS[name]
    options = options | {"detect_cycles": False}
    calls = {}
    for seats_per_slot in (1, SEATS_PER_SLOT):
        parking(monkeypatch, seats_per_slot=seats_per_slot)
        model = Counted(digits_model)
        found = attacked(model, held_out, attack, **options)
        calls[seats_per_slot] = model.calls
    passes = sum(
        int(rows.passes.sum())
        for _, rows in by_run(found, len(held_out), runs=options.get("runs", 1))
    )
    assert passes <= SLOTS * calls[SEATS_PER_SLOT] <= passes + SLOTS * TURN
    assert calls[SEATS_PER_SLOT] < calls[1]


@dataclass(frozen=True)
class Walk:
    """An attack on images of one pixel that only counts:
    the point numbered k of image i in run r is at i + r / 8 + k / 256.
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


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 14), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_every_needed_run_flies_through_all_its_points(
    data: st.DataObject, images: int, runs: int, slots: int, turn: int
) -> None:
    steps = 6
    breaks = {
        number: data.draw(st.integers(0, steps + 3), label=f"run {number} breaks at")
        for number in range(runs * images)
    }
    pixels, y = torch.zeros(images, 1, 1, 1, dtype=torch.uint8), torch.arange(images)
    with pytest.MonkeyPatch.context() as patch:
        parking(
            patch, seats_per_slot=data.draw(st.integers(1, 4), label="seats per slot"), turn=turn
        )
        flight = Flight(
            Walk(steps),
            pixels,
            y,
            Randomness.of(0, range(images)),
            None,
            runs=runs,
            slots=slots,
            device=CPU,
        )
        visited: dict[int, list[int]] = {}
        while flight.fill():
            state, number = flight.state, flight.number
            assert len(flight.seats.parked) == 0 or bool((number >= 0).all()), (
                "a slot is empty while a run is parked"
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
            flight.state = flight.attack.step(torch.neg, state)
            flight.free(torch.tensor(ended, dtype=torch.int64))
            flight.note_broken(torch.tensor(broken, dtype=torch.int64))
    first = [
        next((run for run in range(runs) if breaks[run * images + image] <= steps), runs - 1)
        for image in range(images)
    ]
    for image, last in enumerate(first):
        for run in range(last + 1):
            number = run * images + image
            assert visited[number] == list(range(min(steps, breaks[number]) + 1))
    assert all(points == list(range(len(points))) for points in visited.values())


def test_whoever_has_visited_fewest_points_flies_first() -> None:
    pixels, y = torch.zeros(6, 1, 1, 1, dtype=torch.uint8), torch.arange(6)
    flight = Flight(
        Walk(40), pixels, y, Randomness.of(0, range(6)), None, runs=1, slots=2, device=CPU
    )
    flown = []
    for _ in range(3 * 2 * TURN):
        assert flight.fill()
        flown.append(sorted(flight.number.tolist()))
        flight.state = flight.attack.step(torch.neg, flight.state)
    turns = [[0, 1], [2, 3], [4, 5], [4, 5], [0, 1], [2, 3]]  # of equals, those in a slot stay
    assert flown == [pair for pair in turns for _ in range(TURN)]
