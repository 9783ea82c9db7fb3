"""The strong verdict: attacks on what survives PGD, as records of their own; it decides who is
champion, and AutoAttack confirms it.
"""

import dataclasses
import warnings
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from sweeps import filled, record_of, trained
from trainings import train_small

from sat_ray.attacks import AttackSpec, strong_attacks
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards.reading import image_ids
from sat_ray.data.split import Split
from sat_ray.evaluation.card import FLAG, CardSettings, robustness_card
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import counted_robust_ids, evaluate
from sat_ray.models import Normalized
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import (
    EvaluationSettings,
    FinalSettings,
    ModelSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.sweep.execute.evaluation import evaluate_and_commit
from sat_ray.sweep.plan.evaluations import (
    card_tasks,
    evaluation_tasks,
    open_tasks,
    strong_on_validation,
    strong_tasks,
    validation_tasks,
)
from sat_ray.sweep.records.merge_outcomes import merge_outcomes, read_part
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import EVALUATE, STRONG, VALIDATE, Dataset, EvaluationTask
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingSettings

CONFIG = SweepConfig(
    recipe="toy",
    threat_model=ThreatModel("linf", 40 / 255),
    model=ModelSettings(width=8),
    search=SearchSettings(
        activations=("silu", "relu"), pairs=("relu/relu_smooth_backward",), rungs=(1,)
    ),
    final=FinalSettings(seeds=(0,)),
    evaluation=EvaluationSettings(
        steps=8, step_size=10 / 255, slots=32, shard_size=450, strong_steps=10, strong_targets=3
    ),
)
SHARP_BALL = ThreatModel("linf", 64 / 255)


def without_strong(config: SweepConfig) -> SweepConfig:
    """Return the same config with PGD alone."""
    return dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, strong="none")
    )


def validated(models: list[Record], dataset: Dataset, records: Records) -> dict[str, float]:
    """Attack the validation images of every model."""
    for record in models:
        for task in validation_tasks(CONFIG, dataset, record):
            evaluate_and_commit(task, records)
    found = strong_on_validation(CONFIG, dataset, models, records)
    assert found is not None
    return found


def test_strong_attacks_meet_the_survivors_of_pgd_alone_and_are_merged_into_a_file_of_their_own(
    dataset: Dataset, records: Records, digits_model: Normalized
) -> None:
    record = trained(digits_model, records)
    tasks = strong_tasks(CONFIG, dataset, record)
    parts = [evaluate_and_commit(task, records) for task in tasks]
    before = [
        records.find(EVALUATE, task.key) for task in evaluation_tasks(CONFIG, dataset, record)
    ]
    assert len(parts) == len(before) == 2 and {part.stage for part in parts} == {"strong"}
    survivors: set[int] = set()
    standing: set[int] = set()
    for part, usual in zip(parts, before, strict=True):
        assert usual is not None and part.inputs["survivors_of"] == usual.key
        alive, table = robust_image_ids(read_part(usual, records)), read_part(part, records)
        assert set(table["image_id"].to_pylist()) == alive
        assert part.payload["n"] == len(alive) and part.payload["robust"] == len(
            robust_image_ids(table)
        )
        survivors |= alive
        standing |= robust_image_ids(table)
    assert 0 < len(standing) < len(survivors) < 899
    path = merge_outcomes(parts, survivors, records, name="strong/relu-s0")
    assert path == "outcomes/strong/relu-s0.parquet"
    merged = pa.parquet.read_table(records.storage.full(path))
    assert robust_image_ids(merged) == standing
    fallen = (
        set(merged.filter(pc.equal(merged["attack"], "apgd-ce-10"))["image_id"].to_pylist())
        - standing
    )
    again = merged.filter(pc.equal(merged["attack"], "apgd-t-dlr-10"))
    by_first = robust_image_ids(merged.filter(pc.equal(merged["attack"], "apgd-ce-10")))
    assert fallen and set(again["image_id"].to_pylist()) == by_first, (
        "what the first attack breaks, the second never meets"
    )


def test_a_kill_between_pgd_and_the_strong_attacks_repeats_nothing(
    dataset: Dataset, records: Records, digits_model: Normalized, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = strong_tasks(CONFIG, dataset, trained(digits_model, records))[0]
    run: list[str] = []

    def counted(*arguments: Any, attacks: Any, **settings: Any) -> pa.Table:
        run.append(attacks[0].name)
        if len(run) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, attacks=attacks, **settings)

    monkeypatch.setattr("sat_ray.sweep.execute.evaluation.evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_and_commit(task, records)
    assert (len(records.keys(EVALUATE)), len(records.keys(STRONG))) == (1, 0)
    done = evaluate_and_commit(task, records)
    assert evaluate_and_commit(task, records) == done
    assert run == ["pgd-8", "apgd-ce-10", "apgd-ce-10"]


def test_a_lost_record_of_pgd_is_made_again_though_the_strong_attacks_on_it_are_committed(
    dataset: Dataset, records: Records, digits_model: Normalized
) -> None:
    """As a message advises: move it away and run again."""
    model = trained(digits_model, records)
    first, second = strong_tasks(CONFIG, dataset, model)
    twice = [first, second, first, second]  # two models with the same weights
    assert list(open_tasks(twice, records)) == [first, second]
    for stage, task in ((EVALUATE, first.after), (STRONG, first), (STRONG, second)):
        assert task is not None
        records.commit(stage, task.key, **filled(stage, {"name": "x"}), seconds=1.0)
    assert list(open_tasks(twice, records)) == [second.after]
    assert list(open_tasks([second], Records(records.storage.child("empty")))) == [second]


def test_the_records_of_pgd_are_what_they_are_without_strong_attacks(dataset: Dataset) -> None:
    record = record_with("silu")
    tasks = evaluation_tasks(CONFIG, dataset, record)
    alone = without_strong(CONFIG)
    assert [task.key for task in tasks] == [
        task.key for task in evaluation_tasks(alone, dataset, record)
    ]
    assert set(tasks[0].inputs) == {"weights", "attacks", "rows", "seed", "dataset", "environment"}
    assert (EVALUATE.name, EVALUATE.version) == ("evaluate", 1)
    assert strong_tasks(alone, dataset, record) == validation_tasks(alone, dataset, record) == []


def record_with(activation: str, attacker: str = "") -> Record:
    """Return what a training with these activations would have left."""
    return record_of(SearchPoint(activation=activation, attacker_activation=attacker))


def test_keys_of_strong_tasks_follow_their_attacks_and_what_they_build_on(dataset: Dataset) -> None:
    def key(**changes: Any) -> str:
        config = dataclasses.replace(
            CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, **changes)
        )
        return strong_tasks(config, dataset, record_with("silu"))[0].key

    same = {key(), key(shard_size=450)}
    others = {key(strong_steps=11), key(strong_targets=4), key(steps=9), key(seed=1), key(slots=64)}
    assert len(same) == 1 and len(same | others) == 6


def test_strong_attacks_go_through_every_backward_pass_that_training_used(dataset: Dataset) -> None:
    def views(tasks: list[EvaluationTask]) -> list[tuple[str, str | None]]:
        return [
            (spec.name.partition("@")[0], spec.attacker_activation) for spec in tasks[0].attacks
        ]

    smooth = "relu_smooth_backward"
    strong, usual = ("apgd-ce-10", "apgd-t-dlr-10"), ("pgd-8",)
    for record, through in (
        (record_with("silu"), (None,)),
        (record_with("relu", smooth), (None, smooth)),
    ):
        assert views(strong_tasks(CONFIG, dataset, record)) == [
            (name, view) for name in strong for view in through
        ]
        validation = validation_tasks(CONFIG, dataset, record)
        assert views(validation) == [(name, view) for name in (*usual, *strong) for view in through]
        assert {task.split for task in validation} == {"val"} and all(
            task.cascade for task in validation
        )


@pytest.mark.parametrize(
    ("classes", "targets", "loss"),
    [(2, 1, "margin"), (3, 2, "margin"), (4, 3, "dlr"), (10, 9, "dlr"), (1000, 9, "dlr")],
)
def test_as_many_targets_as_there_are_other_classes(classes: int, targets: int, loss: str) -> None:
    first, second = strong_attacks(CONFIG.threat_model, num_classes=classes)
    assert (first.steps, first.targets, first.loss) == (100, 0, "cross_entropy")
    assert (second.steps, second.targets, second.loss) == (100, targets, loss)


def test_final_iterate_attacks_have_no_say_in_what_survives() -> None:
    rows = {"image_id": [1, 2, 3, 1, 2, 3], "attack": ["pgd-8"] * 3 + ["pgd-8-final"] * 3}
    table = pa.table(rows | {"robust": [True, True, False, True, False, False]})
    assert counted_robust_ids(table) == {1, 2}


def masked_model(digits: Split) -> Normalized:
    """Train a network in a tiny ball and multiply its logits by 1,000: cross-entropy then has no
    gradient where it is right.
    """
    model = train_small(digits, ThreatModel("linf", 4 / 255), activation="silu", epochs=3)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(1000)
    return model


def test_the_champion_of_a_masked_and_an_honest_network_is_the_honest_one(
    dataset: Dataset, records: Records, digits: Split, digits_model: Normalized
) -> None:
    masked = masked_model(digits)
    held_out = digits.take(slice(1000, 1120))

    def survivors(model: Normalized, attacks: list[AttackSpec]) -> int:
        given = (held_out.images, held_out.labels, held_out.image_ids)
        return len(robust_image_ids(evaluate(model, *given, attacks=attacks, cascade=True)))

    short = TrainingSettings().validation_attacks(CONFIG.threat_model, num_classes=10)
    assert survivors(masked, short[:1]) > survivors(digits_model, short[:1]) + 12, (
        "PGD believes the masked one"
    )
    assert survivors(masked, short) < survivors(digits_model, short) - 12, (
        "the validation of training does not"
    )
    models = [
        trained(masked, records, activation="silu", val=0.9),
        trained(digits_model, records, val=0.6),
    ]
    strong = validated(models, dataset, records)
    usual = {one.payload["name"]: pgd_alone(one, records, dataset) for one in models}
    assert usual["silu-s0"] > usual["relu-s0"] + 0.1, "PGD believes the masked one"
    assert strong["silu-s0"] < strong["relu-s0"] - 0.1
    assert [task.name for task in card_tasks(CONFIG, dataset, models, strong)] == [
        "relu-s0",
        "silu-s0",
    ]
    assert [task.name for task in card_tasks(CONFIG, dataset, models, {})] == [
        "silu-s0",
        "relu-s0",
    ], "without strong attacks"


def pgd_alone(record: Record, records: Records, dataset: Dataset) -> float:
    """Return what PGD leaves of the validation images, from the same cascade."""
    shards = [
        records.find(VALIDATE, task.key) for task in validation_tasks(CONFIG, dataset, record)
    ]
    tables = [read_part(shard, records) for shard in shards if shard is not None]
    table = pa.concat_tables(tables)
    first = table.filter(pc.equal(table["attack"], "pgd-8"))
    return len(robust_image_ids(first)) / len(image_ids(Storage(dataset.uri), "val"))


def test_an_uncommitted_validation_is_no_number(dataset: Dataset, records: Records) -> None:
    models = [record_with("silu")]
    assert strong_on_validation(CONFIG, dataset, models, records) is None
    assert strong_on_validation(without_strong(CONFIG), dataset, models, records) == {}


@pytest.fixture(scope="module")
def sharp_model(digits: Split) -> Normalized:
    """Return a network of x * sigmoid(32 x), trained at epsilon 64/255, where PGD overrates it."""
    return train_small(digits, SHARP_BALL, activation="own_parts:sharp", epochs=8)


def autoattack(model: Normalized, split: Split, ball: ThreatModel) -> int:
    """Count what the package index's APGD-CE and targeted APGD-DLR leave,
    as AutoAttack runs them.
    """
    torchattacks = pytest.importorskip("torchattacks")
    x, y = to_pixels(split.images), split.labels
    budget = {"norm": "Linf", "eps": ball.epsilon, "steps": 100, "n_restarts": 1}
    for attack in (
        torchattacks.APGD(model, loss="ce", **budget),
        torchattacks.APGDT(model, n_classes=10, **budget),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x_adv = attack(x, y)
        with torch.no_grad():
            right = model(x_adv).argmax(dim=1) == y
        x, y = x[right], y[right]
    return len(y)


def both_verdicts(model: Normalized, split: Split, ball: ThreatModel) -> tuple[set[int], set[int]]:
    """Return what survives PGD-100, and what of it survives the strong attacks."""
    pgd = AttackSpec(threat_model=ball, steps=100, step_size=4 / 255)
    given = (split.images, split.labels, split.image_ids)
    usual = robust_image_ids(evaluate(model, *given, attacks=[pgd]))
    alive = split.take(torch.isin(split.image_ids, torch.tensor(sorted(usual))))
    attacks = strong_attacks(ball, num_classes=10)
    given = (alive.images, alive.labels, alive.image_ids)
    strong = robust_image_ids(evaluate(model, *given, attacks=attacks, cascade=True))
    assert strong <= usual
    return usual, strong


def test_autoattack_finds_what_the_strong_verdict_finds_and_pgd_far_less(
    sharp_model: Normalized, digits: Split
) -> None:
    """In this ball a start decides about some images:
    other seeds of either leave 52 to 58 of the 200, hence 2 points.
    """
    split = digits.take(slice(1000, 1200))
    usual, strong = both_verdicts(sharp_model, split, SHARP_BALL)
    left = autoattack(sharp_model, split, SHARP_BALL)
    assert len(strong) <= left + 0.02 * len(split)
    assert len(usual) >= left + 0.1 * len(split), "PGD believes what is not there"


@pytest.mark.parametrize("network", ["digits_model", "sharp_model"])
def test_in_a_smaller_ball_autoattack_confirms_every_row(
    network: str, digits: Split, request: pytest.FixtureRequest
) -> None:
    """At most half a point above AutoAttack: of 60 images, none."""
    ball = ThreatModel("linf", 32 / 255)
    split = digits.take(slice(1000, 1060))
    model = request.getfixturevalue(network)
    _, strong = both_verdicts(model, split, ball)
    assert len(strong) <= autoattack(model, split, ball) + 0.005 * len(split)


def test_the_card_flags_what_pgd_cannot_see(sharp_model: Normalized, digits: Split) -> None:
    settings = CardSettings(images=80, restarts=2, cascade_steps=50, cascade_queries=20)
    claimed = AttackSpec(threat_model=SHARP_BALL, steps=100, step_size=4 / 255)
    card = robustness_card(
        sharp_model, digits.take(slice(1000, 1080)), attack=claimed, settings=settings, slots=64
    )
    assert card["verdict"] == FLAG
    assert any(
        reason.startswith("the claim holds against the cascade") for reason in card["reasons"]
    )
