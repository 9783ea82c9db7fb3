"""APGD, Square and the cascade: closed forms, the schedules of the papers, and robust accuracies
against independent implementations.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor, nn

from sat_ray.attacks import (
    Attack,
    AttackSpec,
    Square,
    State,
    autoattack,
    cascade,
    square,
)
from sat_ray.attacks.losses import likeliest_others
from sat_ray.attacks.square import sides
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import SORT_ORDER, clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

LINF, L2 = ThreatModel("linf", 40 / 255), ThreatModel("l2", 0.8)
SLOTS = 32


def last_point(
    attack: Attack, model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
) -> list[State]:
    """Run an attack without retirement and return the state after every step."""
    state = attack.start(x, y, Randomness.of(0, range(len(x))))
    states = [state]
    for _ in range(attack.steps + 1):
        states.append(state := attack.step(model, state))
    return states


def robust(model: Normalized, split: Split, *specs: AttackSpec) -> set[int]:
    """Return the ids that survive."""
    table = evaluate(model, split.images, split.labels, split.image_ids, attacks=specs, slots=SLOTS)
    return robust_image_ids(table)


def test_the_squares_shrink_as_in_the_paper() -> None:
    """The share of pixels starts at 0.8 and halves after 10, 50, 200, ... of 10,000 queries, in
    proportion for other budgets.
    """
    share = [side**2 / 224**2 for side in sides(10_000, 224**2)]
    for query, expected in (
        (5, 0.8),
        (30, 0.4),
        (100, 0.2),
        (400, 0.1),
        (900, 0.05),
        (1500, 0.025),
        (3000, 0.0125),
    ):
        assert share[query] == pytest.approx(expected, rel=0.05)
    assert sides(5000, 1024)[450] == sides(10_000, 1024)[900]
    assert min(sides(5000, 64)) == 1


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=str)
def test_square_keeps_what_lowers_the_margin_and_nothing_else(
    threat_model: ThreatModel, digits_model: Normalized, held_out: Split
) -> None:
    x, y = held_out.images[:SLOTS].float() / 255, held_out.labels[:SLOTS]
    states = last_point(Square(threat_model=threat_model, steps=60), digits_model, x, y)
    margins = torch.stack([state.best_margin for state in states[1:]])  # type: ignore[attr-defined]
    assert bool((margins[1:] <= margins[:-1]).all())
    assert bool((margins[-1] < margins[0]).float().mean() > 0.5)
    with torch.no_grad():
        z = digits_model(states[-1].best)  # type: ignore[attr-defined]
    others = z.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    torch.testing.assert_close(
        z.gather(1, y[:, None])[:, 0] - others, margins[-1], atol=1e-4, rtol=1e-4
    )


def test_a_linf_proposal_changes_one_square_to_the_faces_of_the_ball(
    digits_model: Normalized, held_out: Split
) -> None:
    x, y = held_out.images[:SLOTS].float() / 255, held_out.labels[:SLOTS]
    attack = Square(threat_model=LINF, steps=1000)
    state = attack.step(
        digits_model,
        replace(attack.start(x, y, Randomness.of(0, range(SLOTS))), step=torch.full_like(y, 30)),
    )
    changed = (state.x_adv != state.best).any(dim=1)
    side = sides(1000, 64)[30]
    for image in changed:
        rows, columns = image.any(dim=1).nonzero().flatten(), image.any(dim=0).nonzero().flatten()
        if len(rows):
            assert int(rows[-1] - rows[0]) < side and int(columns[-1] - columns[0]) < side
    faces = torch.minimum(
        (state.x_adv - (x - LINF.epsilon).clamp(0, 1)).abs(),
        (state.x_adv - (x + LINF.epsilon).clamp(0, 1)).abs(),
    )
    assert float(faces.max()) < 1e-6


@pytest.mark.parametrize("channels", [1, 3])
def test_square_skips_what_it_knows_and_changes_no_verdict(
    channels: int, digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that asks the model about every proposal finds the same, in more calls."""
    some = held_out.take(slice(0, SLOTS + 8))

    def model(x: Tensor) -> Tensor:
        return digits_model(x.mean(dim=1, keepdim=True))

    def searched() -> pa.Table:
        return evaluate(
            model,
            some.images.expand(-1, channels, -1, -1),
            some.labels,
            some.image_ids,
            attacks=[AttackSpec(threat_model=LINF, algorithm="square", steps=1500)],
            slots=SLOTS,
        )

    skipping = searched()
    monkeypatch.setattr(square, "MOST_CHANNELS", 0)
    asking = searched()
    assert skipping.drop_columns(["passes"]) == asking.drop_columns(["passes"])
    survived = pc.equal(asking["first_broken_step"], -1)
    assert 5 < pc.sum(survived).as_py() < len(some)
    assert set(asking["passes"].filter(survived).to_pylist()) == {1501}
    share = pc.sum(skipping["passes"]).as_py() / pc.sum(asking["passes"]).as_py()
    assert share < {1: 0.4, 3: 0.97}[channels]


def test_the_last_proposal_of_square_is_visited_though_all_are_known(held_out: Split) -> None:
    """A flat model keeps the start: in the end every square of one pixel has been tried."""
    calls = []

    def flat(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.tensor([2.0, 0.0]).expand(len(x), 2)

    zeros = torch.zeros(SLOTS, dtype=torch.int64)
    table = evaluate(
        flat,
        held_out.images[:SLOTS],
        zeros,
        held_out.image_ids[:SLOTS],
        attacks=[AttackSpec(threat_model=LINF, algorithm="square", steps=5000)],
        slots=SLOTS,
    )
    assert set(table["first_broken_step"].to_pylist()) == {-1}
    # 64 places with two forms for each of seven sides, and one call in 32 that is known
    assert len(calls) < 7 * 128 + 5000 / 32 + 10


def test_an_l2_proposal_spends_all_that_is_left_in_two_squares_and_leaves_the_rest_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.full((SLOTS, 3, 16, 16), 0.5)
    delta = torch.randn(x.shape, generator=generator)
    delta = (
        0.5 * delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    )  # of 0.8, so that something is left
    attack = Square(threat_model=L2, steps=1000)
    state = attack.start(x, torch.zeros(SLOTS, dtype=torch.int64), Randomness.of(0, range(SLOTS)))
    proposed = attack._propose_l2(x + delta, replace(state, step=torch.full((SLOTS,), 300))) - x
    torch.testing.assert_close(proposed.flatten(1).norm(dim=1), torch.full((SLOTS,), 0.8))
    changed = (proposed - delta).abs().amax(dim=1) > 1e-5
    side = 3  # of a square after 300 of 1,000 queries
    assert int(changed.flatten(1).sum(dim=1).max()) <= 2 * side**2
    assert int(changed.flatten(1).sum(dim=1).min()) >= side**2


def test_square_never_asks_for_a_gradient(held_out: Split, digits_model: Normalized) -> None:
    def cut_off(x: Tensor) -> Tensor:
        assert not x.requires_grad and not torch.is_grad_enabled()
        logits: Tensor = digits_model(x).detach()
        return logits

    split = held_out.take(slice(0, 40))
    spec = AttackSpec(threat_model=LINF, algorithm="square", steps=50)
    found = evaluate(
        cut_off, split.images, split.labels, split.image_ids, attacks=[spec], slots=SLOTS
    )
    assert found.equals(
        evaluate(
            digits_model, split.images, split.labels, split.image_ids, attacks=[spec], slots=SLOTS
        )
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targets", [0, 9], ids=["untargeted", "targeted"])
def test_apgd_is_as_strong_as_that_of_adv_lib(
    norm: str, targets: int, digits_model: Normalized, held_out: Split, adv_lib: Any
) -> None:
    """At most 2 of 40 images are robust to one and not to the other."""
    threat_model = {"linf": LINF, "l2": L2}[norm]
    held_out = held_out.take(slice(0, 40))
    x, y = held_out.images.float() / 255, held_out.labels
    budget = {"eps": threat_model.epsilon, "norm": {"linf": torch.inf, "l2": 2}[norm], "n_iter": 15}
    if targets:
        theirs = adv_lib.apgd_targeted(digits_model, x, y, num_targets=targets, **budget)
    else:
        theirs = adv_lib.apgd(digits_model, x, y, loss_function="ce", **budget)
    assert bool(threat_model.contains(theirs, x).all())
    with torch.no_grad():
        left = int((digits_model(theirs).argmax(dim=1) == y).sum())
    spec = AttackSpec(
        threat_model=threat_model,
        algorithm="apgd",
        steps=15,
        loss="dlr" if targets else "cross_entropy",
        targets=targets,
    )
    assert abs(len(robust(digits_model, held_out, spec)) - left) <= 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_is_as_strong_as_that_of_torchattacks(
    norm: str, digits_model: Normalized, held_out: Split
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    threat_model = {"linf": LINF, "l2": L2}[norm]
    held_out = held_out.take(slice(0, 40))
    x, y = held_out.images.float() / 255, held_out.labels
    theirs = torchattacks.Square(
        digits_model,
        norm=norm.replace("l", "L", 1),
        eps=threat_model.epsilon,
        n_queries=200,
        n_restarts=1,
    )(x, y)
    with torch.no_grad():
        left = int((digits_model(theirs).argmax(dim=1) == y).sum())
    found = len(
        robust(
            digits_model,
            held_out,
            AttackSpec(threat_model=threat_model, algorithm="square", steps=200),
        )
    )
    assert found <= left + 4
    assert found < len(held_out) * 0.8


def test_in_a_cascade_each_attack_gets_the_survivors_of_those_before(
    digits_model: Normalized, held_out: Split
) -> None:
    specs = cascade(LINF, num_classes=10, steps=5, queries=40)
    assert [spec.name for spec in specs] == ["apgd-ce-5", "apgd-t-dlr-5", "square-40"]
    table = evaluate(
        digits_model,
        held_out.images,
        held_out.labels,
        held_out.image_ids,
        attacks=specs,
        slots=SLOTS,
        cascade=True,
    )
    expected = set(held_out.image_ids.tolist())
    for spec in specs:
        rows = table.filter(pc.equal(table["attack"], spec.name))
        assert set(rows["image_id"].to_pylist()) == expected
        expected = robust_image_ids(rows)
    assert robust_image_ids(table) == expected
    alone = set.intersection(*(robust(digits_model, held_out, spec) for spec in specs))
    assert alone == expected  # pointwise AND of the attacks run apart
    assert len(clean_correct_ids(table)) > len(expected) > 0


def test_the_outcomes_of_a_cascade_do_not_depend_on_sharding(
    digits_model: Normalized, held_out: Split
) -> None:
    specs = autoattack(LINF, num_classes=10, steps=4, queries=20)

    def rows(split: Split) -> pa.Table:
        given = (split.images, split.labels, split.image_ids)
        found = evaluate(digits_model, *given, attacks=specs, slots=SLOTS, cascade=True)
        return found.sort_by(SORT_ORDER)

    parts = [rows(held_out.take(part)) for part in (slice(50, 77), slice(0, 7), slice(7, 50))]
    together = pa.concat_tables(parts).sort_by(SORT_ORDER).combine_chunks()
    assert together.equals(rows(held_out).combine_chunks())


def test_a_targeted_attack_goes_through_the_likeliest_other_classes(
    digits_model: Normalized, held_out: Split
) -> None:
    spec = AttackSpec(threat_model=LINF, algorithm="apgd", steps=10, loss="dlr", targets=3)
    table = evaluate(
        digits_model,
        held_out.images,
        held_out.labels,
        held_out.image_ids,
        attacks=[spec],
        slots=SLOTS,
    )
    assert set(table["restart"].to_pylist()) == {0, 1, 2}
    with torch.no_grad():
        z = digits_model(held_out.images.float() / 255)
    others = likeliest_others(z, held_out.labels)
    assert others.shape == (77, 9) and not bool((others == held_out.labels[:, None]).any())
    assert torch.equal(
        others[:, 0], z.scatter(1, held_out.labels[:, None], -torch.inf).argmax(dim=1)
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_models_of_few_classes_get_the_margin_where_dlr_is_not_defined(
    classes: int, digits_model: Normalized, held_out: Split
) -> None:
    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = digits_model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, :classes]  # type: ignore[no-any-return]

    few = held_out.take(held_out.labels < classes)
    specs = cascade(LINF, num_classes=classes, steps=15, queries=30)
    assert [spec.name for spec in specs] == ["apgd-ce-15", "apgd-t-margin-15", "square-30"]
    assert specs[1].targets == classes - 1
    evaluate(
        Few().eval(), few.images, few.labels, few.image_ids, attacks=specs, slots=8, cascade=True
    )
    bad = AttackSpec(threat_model=LINF, algorithm="apgd", steps=5, loss="dlr", targets=1)
    with pytest.raises(ValueError, match=f"needs at least 4 classes, the model has {classes}"):
        evaluate(Few().eval(), few.images, few.labels, few.image_ids, attacks=[bad], slots=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "apgdd"}, "did you mean apgd"),
        ({"loss": "dll"}, "attack loss"),
        ({"step_size": 0.1}, "none for apgd, fab and square"),
        ({"algorithm": "pgd"}, "a number > 0 for pgd"),
        ({"targets": -1}, "targets must be a whole number from 0"),
        ({"algorithm": "square", "targets": 2}, "targets must be 0 for square"),
        ({"algorithm": "square", "loss": "dlr"}, "square takes no gradient"),
        ({"steps": 0}, "steps must be a whole number from 1"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackSpec(**{"threat_model": LINF, "algorithm": "apgd", "steps": 10, **change})  # type: ignore[arg-type]


def test_a_model_cut_off_from_its_input_is_named_as_that(held_out: Split) -> None:
    spec = AttackSpec(threat_model=LINF, steps=5, step_size=0.1)
    split = held_out.take(slice(0, 8))
    for cut in (
        lambda x: torch.zeros(len(x), 10),
        lambda x: torch.zeros(len(x), 10, requires_grad=True) * 1.0,
    ):
        with pytest.raises(ValueError, match="no gradient at its input"):
            evaluate(
                cut,
                split.images,
                torch.zeros(8, dtype=torch.int64),
                split.image_ids,
                attacks=[spec],
                slots=8,
            )
