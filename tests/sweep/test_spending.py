"""What a sweep spent is a sum over its records,
and a price changes nothing but the money that is shown.
"""

import dataclasses
from pathlib import Path

import pytest
from sweeps import filled

from sat_ray.storage.store import Storage
from sat_ray.sweep.config import CostSettings, SweepConfig
from sat_ray.sweep.cost.spent import (
    cost_sentence,
    cost_summary,
    row_cost,
    search_seconds,
    spent_by_stage,
    with_costs,
)
from sat_ray.sweep.recipes.digits import digits_smoke
from sat_ray.sweep.records.store import Records, Stage
from sat_ray.sweep.tasks import CARD, EVALUATE, SEARCH, STRONG, TRAIN, VALIDATE
from sat_ray.utils.serialization import content_hash, to_json
from sat_ray.utils.settings_json import from_json


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return records of a trial with two rungs, one training, two shards of it with their strong
    attacks, its validation, a card.
    """
    made = Records(Storage.at(str(tmp_path)))

    def commit(stage: Stage, key: str, seconds: float, **payload: float) -> None:
        about = {"name": "relu-s0", **payload}
        made.commit(stage, key, **filled(stage, about), seconds=seconds)

    commit(SEARCH, "a", 10.0, until=1, accelerator_seconds=10.0)
    commit(SEARCH, "b", 30.0, until=2, accelerator_seconds=30.0)  # goes on from a, and counts it
    commit(TRAIN, "c", 30.0, until=3, accelerator_seconds=60.0)
    commit(EVALUATE, "d", 8.0, passes=1000)
    commit(EVALUATE, "e", 8.0, passes=500)
    commit(STRONG, "g", 12.0, passes=4000)
    commit(VALIDATE, "h", 4.0, passes=300)
    commit(CARD, "f", 20.0)
    return made


def priced(**changes: float) -> SweepConfig:
    base = digits_smoke()
    resources = dataclasses.replace(
        base.resources, gpus_per_trial=0.5, gpus_per_worker=1, gpus_per_evaluation=0.25
    )
    return dataclasses.replace(
        base,
        resources=resources,
        cost=CostSettings(price_per_accelerator_hour=36.0, currency="EUR"),
        **changes,
    )


def test_a_sweep_costs_the_seconds_of_its_accelerators_times_their_price(records: Records) -> None:
    cost = cost_summary(priced(), spent_by_stage(priced(), records, train_images=100))
    seconds = {one["name"]: one["accelerator_seconds"] for one in cost["stages"]}
    evaluations = {"validate": 4 * 0.25, "evaluate": 16 * 0.25, "strong": 12 * 0.25}
    assert seconds == {"search": 30 * 0.5, "train": 60.0, **evaluations, "card": 20 * 0.25}
    assert cost["total"]["accelerator_seconds"] == 88.0 and cost["total"]["money"] == pytest.approx(
        0.88
    )
    per_image = priced().training.passes_per_image()
    passes = {one["name"]: one["passes"] for one in cost["stages"]}
    counted = {"validate": 300, "evaluate": 1500, "strong": 4000}
    assert passes == {
        "search": 2 * 100 * per_image,
        "train": 3 * 100 * per_image,
        **counted,
        "card": None,
    }
    assert [one["money"] for one in cost["trials"]] == [pytest.approx(0.15)]
    assert cost_sentence(cost) == (
        "Accelerator-seconds of committed work: 88, 0.88 EUR (search 15, train 60, validate 1, "
        "evaluate 4, strong 3, card 5)."
    )


def test_a_row_costs_its_training_and_its_evaluation(records: Records) -> None:
    stages = spent_by_stage(priced(), records, train_images=100)
    found = row_cost({"outcomes": "/x/outcomes/relu-s0.parquet"}, priced(), stages)
    assert found["accelerator_seconds"] == 68.0 and found["money"] == pytest.approx(0.68)


def test_groups_cost_what_their_rows_cost(records: Records) -> None:
    stages = spent_by_stage(priced(), records, train_images=100)
    rows = [
        {"configuration": "relu", "outcomes": f"/x/outcomes/relu-s{seed}.parquet"}
        for seed in (0, 1)
    ]  # of seed 1 nothing is committed
    board = with_costs(
        {"rows": rows, "groups": [{"configuration": "relu"}, {"configuration": "silu"}]},
        priced(),
        stages,
    )
    assert [row["cost"]["accelerator_seconds"] for row in board["rows"]] == [68.0, 0.0]
    assert board["groups"][0]["cost"] == {"accelerator_seconds": 68.0, "money": pytest.approx(0.68)}
    assert board["groups"][1]["cost"]["accelerator_seconds"] == 0.0


def test_what_was_estimated_stands_beside_what_was_spent(records: Records) -> None:
    stages = spent_by_stage(priced(), records, train_images=100)
    known = {"search": 20.0, "train": 50.0, "validate": 10.0, "evaluate": 40.0, "strong": 50.0}
    known |= {"card": 30.0}
    cost = cost_summary(priced(), stages, estimated=known)
    assert {one["name"]: one["estimated_accelerator_seconds"] for one in cost["stages"]} == known
    assert cost["total"]["estimated_accelerator_seconds"] == 200.0 and cost["total"][
        "estimated_money"
    ] == pytest.approx(2.0)
    partly = cost_summary(priced(), stages, estimated={"search": 20.0})
    money = [one["estimated_money"] for one in partly["stages"]]
    assert money == [pytest.approx(0.2), *[None] * 5]
    assert partly["total"]["estimated_accelerator_seconds"] is None


def test_a_search_has_spent_what_its_longest_trials_took(records: Records) -> None:
    assert search_seconds(records, gpus=0) == 30.0 and search_seconds(records, gpus=0.5) == 15.0


def test_without_a_price_no_money_is_reported_and_without_gpus_workers_count(
    records: Records,
) -> None:
    cost = cost_summary(digits_smoke(), spent_by_stage(digits_smoke(), records, train_images=100))
    assert (
        cost["total"]["money"] is None
        and cost["total"]["accelerator_seconds"] == 30 + 60 + 16 + 12 + 4 + 20
    )


def test_a_price_is_no_part_of_what_determines_results() -> None:
    base = digits_smoke()
    assert content_hash(
        dataclasses.replace(base, cost=CostSettings(price_per_accelerator_hour=3.0)).semantic()
    ) == content_hash(base.semantic())
    older = {name: value for name, value in to_json(base).items() if name != "cost"}
    assert from_json(SweepConfig, older) == base and "cost" not in base.semantic()


@pytest.mark.parametrize(
    "changes",
    [
        {"price_per_accelerator_hour": -1.0},
        {"price_per_accelerator_hour": float("nan")},
        {"currency": ""},
    ],
)
def test_a_price_that_is_none_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^cost\.\w+ must be (a number from 0 to|letters)"):
        CostSettings(**changes)
