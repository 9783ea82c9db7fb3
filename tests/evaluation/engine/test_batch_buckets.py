"""Calls with fewer rows while slots are empty give the same outcomes in every bit.

They are made only where fewer rows give the same bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from sat_ray.attacks import APGD, PGD, Attack, AttackSpec
from sat_ray.attacks.base import Model
from sat_ray.attacks.square import Square
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.batch_buckets import BatchBuckets
from sat_ray.evaluation.engine.padding import BLOCK, call_rows
from sat_ray.evaluation.engine.run_attack import run_slots
from sat_ray.evaluation.engine.verdicts import Verdicts
from sat_ray.evaluation.low_precision.surrogate import make_surrogate
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized, build_model
from sat_ray.models.parity import logits_and_gradient
from sat_ray.threat import ThreatModel

CPU = torch.device("cpu")
SLOTS = 16
BALL = ThreatModel("linf", 40 / 255)
PGD_40 = PGD(threat_model=BALL, steps=40, step_size=8 / 255)
ATTACKS: dict[str, Attack] = {
    "pgd": PGD_40,
    "pgd of l2": PGD(threat_model=ThreatModel("l2", 0.8), steps=25, step_size=0.2),
    "apgd": APGD(threat_model=BALL, steps=12, loss="dlr"),
    "square": Square(threat_model=BALL, steps=30),
}


@dataclass
class Recorded:
    """A model that notes the rows of its calls. fixed_rows: it accepts full calls only."""

    model: Model
    fixed_rows: bool = False
    rows: list[int] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.model(x)


def attacked(
    model: Model, split: Split, attack: Attack = PGD_40, *, slots: int = SLOTS
) -> Verdicts:
    """Attack a split in slots."""
    return run_slots(model, attack, AttackInputs.of(split, seed=1), slots=slots, device=CPU)


def assert_same(one: Verdicts, other: Verdicts) -> None:
    """Require every bit of two sets of verdicts to be the same."""
    for name in fields(Verdicts):
        assert torch.equal(getattr(one, name.name), getattr(other, name.name)), name.name


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_fewer_rows_change_no_bit_of_any_verdict(
    attack: Attack, digits_model: Normalized, held_out: Split
) -> None:
    full, narrow = Recorded(digits_model, fixed_rows=True), Recorded(digits_model)
    assert_same(attacked(narrow, held_out, attack), attacked(full, held_out, attack))
    assert set(full.rows) == {SLOTS}
    assert set(narrow.rows) <= {1, 2, 4, 8, 12, SLOTS}


def test_the_last_survivors_are_attacked_in_fewer_rows(
    digits_model: Normalized, held_out: Split
) -> None:
    full, narrow, few = (
        Recorded(digits_model, fixed_rows=True),
        Recorded(digits_model),
        held_out.take(slice(0, 2 * SLOTS)),
    )
    passes = int(attacked(full, few).passes.sum())
    attacked(narrow, few)
    assert passes <= sum(narrow.rows) < 0.9 * sum(full.rows)
    assert min(narrow.rows) <= BLOCK


def test_a_bf16_surrogate_gets_fewer_rows_too(digits_model: Normalized, held_out: Split) -> None:
    copy = make_surrogate(digits_model, gradient="bf16", device=CPU)
    full, narrow = Recorded(copy, fixed_rows=True), Recorded(copy)
    assert_same(attacked(narrow, held_out), attacked(full, held_out))


class _RowsInGradient(torch.autograd.Function):
    """Return x; the gradient depends on how many rows there are, the values do not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0] * (1 + 2**-20 * len(grad_outputs[0]))


def _refuses(model: Model, x: Tensor) -> Tensor:
    if len(x) != SLOTS:
        raise RuntimeError(f"exported for {SLOTS} rows, not {len(x)}")
    return model(x)


UNEQUAL: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "logits depend on the number of rows": lambda model, x: model(x) * (1 + 2**-20 * len(x)),
    "logits depend on the place": lambda model, x: (
        model(x) * (1 + 2**-20 * torch.arange(len(x))[:, None])
    ),
    "gradients depend on the number of rows": lambda model, x: model(_RowsInGradient.apply(x)),  # type: ignore[no-untyped-call]
    "neighbours are mixed": lambda model, x: model(x) + 1e-6 * x.mean(),
    "output is random": lambda model, x: model(x) + 1e-6 * torch.rand(len(x), 1),
    "other numbers of rows are refused": _refuses,
}


@pytest.mark.parametrize("unequal", UNEQUAL.values(), ids=UNEQUAL)
def test_a_model_that_gives_other_bits_in_fewer_rows_gets_full_calls(
    unequal: Callable[[Model, Tensor], Tensor], digits_model: Normalized, held_out: Split
) -> None:
    calls = BatchBuckets(lambda x: unequal(digits_model, x), slots=SLOTS)
    x = held_out.images[:SLOTS].float() / 255
    occupied = torch.arange(SLOTS) < 3
    assert calls.model_for(occupied, x) is calls.model
    assert calls.verified == []
    plain = BatchBuckets(digits_model, slots=SLOTS)
    plain.model_for(occupied, x)
    assert plain.verified, "the unchanged model gets fewer rows, so the change was seen"


def test_occupied_slots_get_the_logits_and_gradients_of_a_full_call_and_others_zeros(
    digits_model: Normalized, held_out: Split
) -> None:
    x = held_out.images[:SLOTS].float() / 255
    occupied = torch.zeros(SLOTS, dtype=torch.bool)
    occupied[[15, 2, 7]] = True
    results = []
    buckets = BatchBuckets(digits_model, slots=SLOTS)
    for model in (digits_model, buckets.model_for(occupied, x)):
        point = x.clone().requires_grad_()
        logits = model(point)
        results.append((logits.detach(), torch.autograd.grad(logits.square().sum(), point)[0]))
    for full, narrow in zip(*results, strict=True):
        assert torch.equal(full[occupied], narrow[occupied])
        assert not narrow[~occupied].any()


@pytest.mark.parametrize(
    ("slots", "rows"), [(1, 1), (3, 3), (4, 4), (5, 8), (6, 8), (8, 8), (10, 12), (64, 64)]
)
def test_a_full_call_has_whole_blocks_of_rows(
    slots: int, rows: int, digits_model: Normalized, held_out: Split
) -> None:
    assert call_rows(slots) == rows
    recorded = Recorded(digits_model, fixed_rows=True)
    attacked(recorded, held_out, PGD(threat_model=BALL, steps=2, step_size=30 / 255), slots=slots)
    assert set(recorded.rows) == {rows}


@pytest.mark.parametrize("slots", [2, 3, 4, 5, 6, 7, 10, 16])
def test_the_place_of_a_row_in_a_full_call_changes_no_bit(slots: int) -> None:
    model = build_model("small_resnet", activation="silu", num_classes=10, width=16, seed=0).eval()
    x = torch.rand(call_rows(slots), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for there, here in zip(
        logits_and_gradient(model, x.flip(0)).values(),
        logits_and_gradient(model, x).values(),
        strict=True,
    ):
        assert torch.equal(there.flip(0), here)


@pytest.mark.parametrize("slots", [3, 5, 6, 7, 10, 16])
def test_outcomes_do_not_depend_on_order_or_neighbours_at_any_number_of_slots(
    slots: int, digits_model: Normalized, held_out: Split
) -> None:
    spec = AttackSpec(threat_model=BALL, steps=20, step_size=8 / 255)

    def table(split: Split) -> Any:
        return evaluate(
            digits_model, split.images, split.labels, split.image_ids, attacks=[spec], slots=slots
        )

    whole = table(held_out)
    part = held_out.take(torch.arange(len(held_out) - 1, -1, -3))
    alone = table(part)
    ids = set(part.image_ids.tolist())
    assert [row for row in whole.to_pylist() if row["image_id"] in ids] == alone.to_pylist()
