"""Outcomes: what counts as broken, what costs a pass, and what a table may not depend on."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from trainings import small_model

from sat_ray.attacks import AttackSpec, pgd
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import (
    OUTCOME_SCHEMA,
    SORT_ORDER,
    clean_correct_ids,
    robust_image_ids,
)
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

SLOTS = 16
PGD_20 = AttackSpec(threat_model=ThreatModel("linf", 40 / 255), steps=20, step_size=8 / 255)
FINAL = AttackSpec(
    threat_model=PGD_20.threat_model, steps=20, step_size=8 / 255, final_iterate=True
)
TWO_RESTARTS = AttackSpec(
    threat_model=ThreatModel("l2", 0.8), steps=8, step_size=0.2, restarts=2, name="l2"
)


def outcomes(
    model: Callable[[Tensor], Tensor],
    split: Split,
    *attacks: AttackSpec,
    seed: int = 0,
    slots: int = SLOTS,
) -> pa.Table:
    """Evaluate a split."""
    return evaluate(
        model,
        split.images,
        split.labels,
        split.image_ids,
        attacks=attacks or [PGD_20],
        seed=seed,
        slots=slots,
    )


def gathered(parts: list[pa.Table]) -> pa.Table:
    """Put shards together as the evaluate stage does."""
    return pa.concat_tables(parts).sort_by(SORT_ORDER).combine_chunks()


def by_id(table: pa.Table, column: str) -> dict[int, object]:
    """Map image id to one column's value."""
    return dict(zip(table["image_id"].to_pylist(), table[column].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def undisturbed(digits_model: Normalized, held_out: Split) -> pa.Table:
    """Return the outcomes of one task that sees every image in order."""
    return gathered([outcomes(digits_model, held_out, PGD_20, TWO_RESTARTS, FINAL)])


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([slice(0, 40), slice(40, 77)], id="two shards"),
        pytest.param([slice(0, 1), slice(1, 4), slice(4, 60), slice(60, 77)], id="ragged shards"),
        pytest.param(
            [slice(k, None, 5) for k in (3, 0, 4, 1, 2)], id="strided shards out of order"
        ),
        pytest.param(
            [torch.randperm(77, generator=torch.Generator().manual_seed(0))], id="shuffled"
        ),
    ],
)
def test_outcomes_do_not_depend_on_sharding_or_order(
    pieces: list[slice | Tensor], digits_model: Normalized, held_out: Split, undisturbed: pa.Table
) -> None:
    parts = [
        outcomes(digits_model, held_out.take(piece), PGD_20, TWO_RESTARTS, FINAL)
        for piece in pieces
    ]
    assert gathered(parts).equals(undisturbed)


def test_one_task_per_attack_gives_the_same_outcomes(
    digits_model: Normalized, held_out: Split, undisturbed: pa.Table
) -> None:
    parts = [outcomes(digits_model, held_out, spec) for spec in (TWO_RESTARTS, FINAL, PGD_20)]
    assert gathered(parts).equals(undisturbed)


def test_the_seed_changes_the_starts_and_with_them_the_outcomes(
    digits_model: Normalized, held_out: Split
) -> None:
    tables = [outcomes(digits_model, held_out, PGD_20, seed=seed) for seed in (0, 1)]
    assert tables[0]["adversarial_margin"] != tables[1]["adversarial_margin"]
    assert tables[0]["clean_margin"] == tables[1]["clean_margin"]


def test_outcomes_have_the_promised_columns_rows_and_order(
    held_out: Split, undisturbed: pa.Table
) -> None:
    assert undisturbed.schema == OUTCOME_SCHEMA
    keys = list(
        zip(
            *(undisturbed[name].to_pylist() for name in ("attack", "restart", "image_id")),
            strict=True,
        )
    )
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    ids = set(held_out.image_ids.tolist())
    for name in ("pgd-20", "pgd-20-final", "l2"):
        first = undisturbed.filter(
            pa.compute.and_(
                pa.compute.equal(undisturbed["attack"], name),
                pa.compute.equal(undisturbed["restart"], 0),
            )
        )
        assert first["image_id"].to_pylist() == sorted(ids)
    assert by_id(first, "label") == dict(
        zip(held_out.image_ids.tolist(), held_out.labels.tolist(), strict=True)
    )


def test_a_later_restart_attacks_the_survivors_of_the_earlier_ones(undisturbed: pa.Table) -> None:
    first, second = (
        undisturbed.filter(
            pa.compute.and_(
                pa.compute.equal(undisturbed["attack"], "l2"),
                pa.compute.equal(undisturbed["restart"], r),
            )
        )
        for r in (0, 1)
    )
    assert second["image_id"].to_pylist() == sorted(
        i for i, robust in by_id(first, "robust").items() if robust
    )
    assert robust_image_ids(pa.concat_tables([first, second])) == {
        i for i, robust in by_id(second, "robust").items() if robust
    }


def test_only_masks_of_bool_are_inverted(
    digits_model: Normalized, held_out: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert, seen = Tensor.__invert__, list[torch.dtype]()

    def watched(mask: Tensor) -> Tensor:
        seen.append(mask.dtype)
        return invert(mask)

    monkeypatch.setattr(Tensor, "__invert__", watched)
    apgd = AttackSpec(
        threat_model=PGD_20.threat_model, algorithm="apgd", steps=5, loss="dlr", targets=2
    )
    square = AttackSpec(threat_model=PGD_20.threat_model, algorithm="square", steps=9)
    outcomes(digits_model, held_out, PGD_20, TWO_RESTARTS, FINAL, apgd, square)
    assert seen and set(seen) == {torch.bool}


@pytest.mark.parametrize("algorithm", ["pgd", "apgd", "square"])
def test_the_attacks_forward_is_the_models_own(
    algorithm: str, digits_model: Normalized, held_out: Split
) -> None:
    steps = 20 if algorithm == "pgd" else 5
    spec = AttackSpec(
        threat_model=PGD_20.threat_model,
        algorithm=algorithm,
        steps=steps,
        **({"step_size": 8 / 255} if steps == 20 else {}),
    )
    calls: list[tuple[Tensor, Tensor]] = []

    def remembering(x: Tensor) -> Tensor:
        logits = digits_model(x)
        calls.append((x.detach().clone(), logits.detach().clone()))
        return logits

    with torch.no_grad():
        plain = digits_model(held_out.images.float() / 255).argmax(dim=1)
    table = outcomes(remembering, held_out, spec)
    assert by_id(table, "clean_prediction") == dict(
        zip(held_out.image_ids.tolist(), plain.tolist(), strict=True)
    )
    with torch.no_grad():
        assert all(torch.equal(digits_model(x), logits) for x, logits in calls)
    assert all(
        float(x.min()) >= 0 and float(x.max()) <= 1 for x, _ in calls
    )  # pixels at the model's door, whatever is scored


def test_clean_errors_count_as_broken_and_cost_no_pass(
    digits_model: Normalized, held_out: Split
) -> None:
    mislabelled = replace(
        held_out,
        labels=torch.where(
            torch.arange(len(held_out)) % 9 == 4, (held_out.labels + 1) % 10, held_out.labels
        ),
    )
    clean = digits_model(mislabelled.images.float() / 255).argmax(dim=1)
    errors = set(mislabelled.image_ids[clean != mislabelled.labels].tolist())
    assert 0 < len(errors) < 30
    table = outcomes(digits_model, mislabelled, PGD_20, TWO_RESTARTS, FINAL)
    rows = [
        row
        for row in table.to_pylist()
        if row["attack"] != "pgd-20-final" and row["image_id"] in errors
    ]
    assert len(rows) == 2 * len(errors)
    for row in rows:
        assert (row["first_broken_step"], row["passes"], row["robust"], row["distance"]) == (
            -2,
            0,
            False,
            0.0,
        )
        assert row["adversarial_prediction"] == row["clean_prediction"] != row["label"]
        assert row["clean_margin"] <= 0
    assert set(mislabelled.image_ids.tolist()) - clean_correct_ids(table) == errors


def test_a_model_that_is_always_wrong_is_never_attacked() -> None:
    calls = [0]

    def wrong(x: Tensor) -> Tensor:
        calls[0] += 1
        return torch.tensor([0.0, 5.0]).expand(len(x), 2) + 0 * x.flatten(1).sum(
            dim=1, keepdim=True
        )

    split = Split(
        torch.zeros(20, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(20, dtype=torch.int64),
        torch.arange(20),
    )
    table = outcomes(wrong, split, slots=8)
    assert calls[0] == 3
    assert not any(table["robust"].to_pylist())
    assert table.num_rows == 20


ONE_PIXEL = Split(
    torch.full((1, 1, 1, 1), 127, dtype=torch.uint8),
    torch.zeros(1, dtype=torch.int64),
    torch.tensor([6]),
)


def wrong_near(point: float) -> Callable[[Tensor], Tensor]:
    """Return a model whose loss pushes the pixel up at a constant
    slope and which errs only within 0.01 of one point.
    """

    def model(x: Tensor) -> Tensor:
        pixel = x[:, 0, 0, 0]
        return torch.stack(
            [2 - pixel - 10 * ((pixel - point).abs() < 0.01).float(), torch.zeros_like(pixel)],
            dim=1,
        )

    return model


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("step", [0, 1, 3, 5, 6])
def test_an_error_at_one_visited_point_alone_breaks_an_image(step: int, random_start: bool) -> None:
    threat_model, x = ThreatModel("linf", 0.25), torch.full((1, 1, 1, 1), 127 / 255)
    starts = [threat_model.random_start(x, Randomness.of(seed, [6])).item() for seed in range(20)]
    # low enough for six steps up inside the ball, none of which lands on the clean image
    seed = next(
        seed
        for seed, start in enumerate(starts)
        if start < 127 / 255 - 0.1 and 0.3 < (127 / 255 - start) / 0.05 % 1 < 0.7
    )
    start = starts[seed] if random_start else x.item()
    arguments = {
        "threat_model": threat_model,
        "steps": 5,
        "step_size": 0.05,
        "random_start": random_start,
    }
    model = wrong_near(start + 0.05 * step)
    (row,) = outcomes(model, ONE_PIXEL, AttackSpec(**arguments), seed=seed).to_pylist()
    (final,) = outcomes(
        model, ONE_PIXEL, AttackSpec(**arguments, final_iterate=True), seed=seed
    ).to_pylist()
    if step == 0 and not random_start:
        assert (row["first_broken_step"], row["passes"]) == (-2, 0)
    elif step == 6:
        assert (row["first_broken_step"], row["robust"], row["passes"]) == (-1, True, 6)
    else:
        assert (
            row["first_broken_step"],
            row["robust"],
            row["passes"],
            row["adversarial_prediction"],
        ) == (step, False, step + 1, 1)
        assert row["distance"] == pytest.approx(abs(start + 0.05 * step - 127 / 255), abs=1e-6)
    assert (final["first_broken_step"], final["robust"]) == (
        (5, False) if step == 5 else (-1, True)
    )


def test_the_final_iterate_attack_scores_what_plain_pgd_returns(
    digits_model: Normalized, held_out: Split
) -> None:
    split = held_out.take(slice(0, 32))
    spec = AttackSpec(
        threat_model=ThreatModel("linf", 40 / 255), steps=60, step_size=8 / 255, final_iterate=True
    )
    x, y = split.images.float() / 255, split.labels
    x_adv = pgd(
        digits_model,
        x,
        y,
        threat_model=spec.threat_model,
        step_size=spec.step_size,
        steps=60,
        rng=Randomness(2, split.image_ids),
    )
    table = outcomes(digits_model, split, spec, seed=2, slots=32)
    assert table["adversarial_prediction"].to_pylist() == digits_model(x_adv).argmax(dim=1).tolist()
    torch.testing.assert_close(
        torch.tensor(table["distance"].to_pylist()),
        spec.threat_model.distance(x_adv, x),
        rtol=0,
        atol=0,
    )
    passes = table["passes"].to_pylist()
    assert max(passes) <= 61
    assert min(passes) < 40, "no cycle was skipped, so skipping was not tested"


def test_more_steps_and_more_restarts_never_raise_accuracy(
    digits_model: Normalized, held_out: Split
) -> None:
    threat_model, robust = ThreatModel("linf", 24 / 255), []
    for steps, restarts in ((3, 1), (6, 1), (24, 1), (24, 3)):
        spec = AttackSpec(
            threat_model=threat_model, steps=steps, step_size=8 / 255, restarts=restarts
        )
        robust.append(robust_image_ids(outcomes(digits_model, held_out, spec)))
    assert all(more <= fewer for fewer, more in itertools.pairwise(robust))
    assert 0 < len(robust[-1]) < len(robust[0]) <= len(held_out)


def test_every_visited_point_breaks_at_least_what_the_last_one_breaks(
    undisturbed: pa.Table,
) -> None:
    every, final = (
        robust_image_ids(undisturbed.filter(pa.compute.equal(undisturbed["attack"], name)))
        for name in ("pgd-20", "pgd-20-final")
    )
    assert every <= final


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 1.0), ("l2", 8.0)])
def test_a_huge_epsilon_drives_robust_accuracy_to_zero(
    norm: str, epsilon: float, digits_model: Normalized, held_out: Split
) -> None:
    spec = AttackSpec(threat_model=ThreatModel(norm, epsilon), steps=30, step_size=epsilon / 10)
    assert robust_image_ids(outcomes(digits_model, held_out, spec)) == set()


def test_true_and_smooth_backward_attack_the_same_network_differently(
    digits_model: Normalized, held_out: Split
) -> None:
    twin = small_model("relu_smooth_backward")
    twin.load_state_dict(digits_model.state_dict())
    view_of = {"threat_model": PGD_20.threat_model, "steps": 20, "step_size": 8 / 255}
    true = AttackSpec(**view_of, attacker_activation="relu", name="a")
    smooth = AttackSpec(**view_of, attacker_activation="relu_smooth_backward", name="b")
    of_relu = outcomes(digits_model, held_out, true, smooth)
    assert outcomes(twin.eval(), held_out, true, smooth).equals(of_relu)
    assert outcomes(digits_model, held_out, AttackSpec(**view_of, name="a")).equals(
        of_relu.filter(pa.compute.equal(of_relu["attack"], "a"))
    )
    a, b = (of_relu.filter(pa.compute.equal(of_relu["attack"], name)) for name in "ab")
    assert a["adversarial_margin"] != b["adversarial_margin"]
    assert a["clean_margin"] == b["clean_margin"]
    assert robust_image_ids(of_relu) == robust_image_ids(a) & robust_image_ids(b)


def head(x: Tensor) -> Tensor:
    """Return two finite logits."""
    total = x.flatten(1).sum(dim=1)
    return torch.stack([total + 2, -total], dim=1)


FOUR = {
    "images_uint8": torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
    "labels": [0, 0, 1, 1],
    "image_ids": [3, 1, 2, 9],
}


def test_lists_and_arrays_do_as_well_as_tensors() -> None:
    table = evaluate(head, **FOUR, attacks=[PGD_20], slots=4)
    arrays = {name: np.asarray(values) for name, values in FOUR.items()}
    assert evaluate(head, **arrays, attacks=[PGD_20], slots=4).equals(table)
    assert table["image_id"].to_pylist() == [1, 2, 3, 9]
    assert table["robust"].to_pylist() == [True, False, True, False]


def test_no_image_is_an_empty_table() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert evaluate(
        head, torch.zeros(0, 1, 2, 2, dtype=torch.uint8), none, none, attacks=[PGD_20]
    ).equals(OUTCOME_SCHEMA.empty_table())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": lambda x: head(x) * torch.nan},
        r"NaN or inf logits for image ids \[3, 1, 2, 9\]"),
        ({"model": lambda x: head(x) + torch.inf}, "NaN or inf logits"),
        ({"model": lambda x: head(x).softmax(dim=1)}, "probabilities"),
        ({"model": lambda x: head(x).softmax(dim=1).to(torch.bfloat16)}, "probabilities"),
        ({"model": lambda x: head(x)[:, 0]}, r"must return \(N, num_classes\)"),
        ({"model": lambda x: head(x)[:, :, None]}, r"must return \(N, num_classes\)"),
        ({"labels": [0, 1, 2, 0]}, "2 classes"), ({"labels": [0, 1, -1, 0]}, r"lie in \[-1, 1\]"),
        ({"labels": [0, 1]}, "labels must be 4 whole"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, "labels must be 4 whole"),
        ({"image_ids": [1, 2, 1, 4]}, "duplicates"),
        ({"image_ids": [[1], [2], [3], [4]]}, "image_ids must be 4 whole"),
        ({"images_uint8": torch.zeros(4, 1, 2, 2)}, "uint8"),
        ({"images_uint8": torch.zeros(4, 4, dtype=torch.uint8)}, "uint8"),
        ({"slots": 0}, "slots must be"), ({"attacks": []}, "at least one"),
        ({"attacks": [PGD_20, PGD_20]}, "different names"),
        ({"attacks": [AttackSpec(threat_model=PGD_20.threat_model, steps=20, step_size=0.1,
        attacker_activation="relu")]}, "not built by"),
        ({"model": torch.nn.Flatten().train()}, "train mode"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_attacked(
    change: dict[str, object], message: str
) -> None:
    arguments = {"model": head, **FOUR, "attacks": [PGD_20], "slots": 4} | change
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


def test_logits_that_become_nan_under_attack_are_refused_by_image_id() -> None:
    def fragile(x: Tensor) -> Tensor:
        return head(x) + torch.where(
            (x.flatten(1).sum(dim=1, keepdim=True) > 0.01) & (x.amax() > 0), torch.nan, 0.0
        )

    with pytest.raises(ValueError, match=r"NaN or inf logits for image ids \[3"):
        evaluate(fragile, **FOUR, attacks=[PGD_20], slots=4)


def test_another_slot_count_is_another_environment_with_nearly_the_same_verdicts(
    digits_model: Normalized, digits: Split
) -> None:
    """Kernels round differently for another batch shape, and sign() amplifies it: verdicts may
    differ on images near the boundary alone.
    """
    split = digits.take(slice(1000, 1400))
    one, other = (by_id(outcomes(digits_model, split, slots=slots), "robust") for slots in (16, 40))
    differing = sorted(image_id for image_id in one if one[image_id] != other[image_id])
    assert len(differing) <= 0.005 * len(split), differing


@pytest.mark.parametrize("features", [33, 50])
def test_a_row_has_the_same_bits_in_any_place_for_any_number_of_features(
    features: int, held_out: Split
) -> None:
    """MKL computes a row of 50 features in one of two ways, by its place in the batch,
    unless it is asked not to.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, features),
        torch.nn.SiLU(),
        torch.nn.Linear(features, 10),
    ).eval()
    with torch.no_grad():
        labels = model(held_out.images.float() / 255).argmax(dim=1)
    named = Split(held_out.images, labels, held_out.image_ids)
    whole, *parts = (
        outcomes(model, part, slots=64)
        for part in (named, *(named.take(slice(k, None, 3)) for k in (2, 0, 1)))
    )
    assert gathered(parts).equals(gathered([whole]))


def test_the_layout_of_images_in_memory_is_no_part_of_an_evaluation() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 16, 3), torch.nn.SiLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(64, 10),
    ).eval()  # fmt: skip
    images, ids = torch.randint(0, 256, (32, 3, 15, 15), dtype=torch.uint8), torch.arange(32)
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(dim=1)
    plain, other = (
        outcomes(model, Split(laid_out, labels, ids))
        for laid_out in (images, images.contiguous(memory_format=torch.channels_last))
    )
    assert plain.equals(other)
