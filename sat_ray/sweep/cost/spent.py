"""What a sweep has spent, from its committed records: accelerator-seconds, passes and money.

    accelerator-seconds = seconds · workers · GPUs of each
        (1 where there is none: then they are seconds of worker processes)
    money = accelerator-seconds / 3600 · price of an accelerator-hour

Time that ended in no record (a killed attempt, start-up, an idle node) is not in it: what a cloud
bills is more.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sat_ray.sweep.config.resources import money_text
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.tasks import CARD, CORRUPTIONS, EVALUATE, SEARCH, STRONG, TRAIN, VALIDATE

if TYPE_CHECKING:
    from sat_ray.sweep.config import CostSettings, SweepConfig

ESTIMATES = (
    "Estimated: what --dry-run expects of the whole plan from resources.images_per_second, of "
    "attacks and cards at most (strong attacks are counted on every image, and meet the survivors "
    "of PGD alone); validation while training is not in it. Spent: committed work alone."
)


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one task or a sum of tasks took.

    passes: forward and backward passes of one image, None where they were not counted.
    """

    name: str
    accelerator_seconds: float
    passes: int | None = None

    def to_json(self, cost: "CostSettings") -> dict[str, Any]:
        """Return plain values; money: None without a price."""
        seconds = self.accelerator_seconds
        return {
            "name": self.name,
            "accelerator_seconds": seconds,
            "passes": self.passes,
            "money": cost.money(seconds),
        }


def longest_trials(records: Records) -> list[Record]:
    """Return the longest record of every trial, oldest trial first."""
    longest: dict[str, Record] = {}
    for record in records.all(SEARCH):
        name = record.payload["name"]
        if name not in longest or record.payload["until"] > longest[name].payload["until"]:
            longest[name] = record
    return list(longest.values())


def spent_by_stage(
    config: "SweepConfig", records: Records, *, train_images: int
) -> dict[str, list[Spent]]:
    """Return the committed work of the stages that take accelerators, one item for each model.

    train_images: of the train split.
    """
    asked = config.resources
    per_epoch = train_images * config.training.passes_per_image()
    trials = [
        _training(record, gpus=asked.gpus_per_trial, per_epoch=per_epoch)
        for record in longest_trials(records)
    ]
    trainings = [
        _training(record, gpus=asked.gpus_per_worker, per_epoch=per_epoch)
        for record in records.all(TRAIN)
    ]
    cards = [
        Spent(
            name=one.payload["name"],
            accelerator_seconds=evaluation_seconds(one, gpus=asked.gpus_per_evaluation),
        )
        for one in records.all(CARD)
    ]
    shards = {
        stage.name: _by_model(records.each(stage), gpus=asked.gpus_per_evaluation)
        for stage in (VALIDATE, EVALUATE, STRONG, CORRUPTIONS)
        if stage.name in config.evaluation.stages()
    }
    return {"search": trials, "train": trainings, **shards, "card": cards}


def _by_model(shards: Iterable[Record], *, gpus: float) -> list[Spent]:
    """Add up what the shards of each model took."""
    models: dict[str, Spent] = {}
    for one in shards:
        name = one.payload["name"]
        seconds = evaluation_seconds(one, gpus=gpus)
        shard = Spent(name=name, accelerator_seconds=seconds, passes=one.payload["passes"])
        models[name] = total(name, [models[name], shard]) if name in models else shard
    return list(models.values())


def _training(record: Record, *, gpus: float, per_epoch: float) -> Spent:
    payload = record.payload
    return Spent(
        name=payload["name"],
        accelerator_seconds=training_seconds(record, gpus=gpus),
        passes=round(payload["until"] * per_epoch),
    )


def evaluation_seconds(record: Record, *, gpus: float) -> float:
    """Return the accelerator-seconds of an evaluated shard or a card.

    gpus: that it held where its record does not say, 0 for none.
    """
    return float(record.seconds * record.payload.get("gpus", gpus or 1))


def training_seconds(record: Record, *, gpus: float) -> float:
    """Return the accelerator-seconds of a training, all rungs of a trial together.

    gpus: of each worker, 0 where it has none.
    """
    return float(record.payload["accelerator_seconds"] * (gpus or 1))


def search_seconds(records: Records, *, gpus: float) -> float:
    """Return the accelerator-seconds of the committed trials of a search. gpus: of each trial."""
    return math.fsum(training_seconds(record, gpus=gpus) for record in longest_trials(records))


def total(name: str, parts: list[Spent]) -> Spent:
    """Add pieces of work up; the passes of a sum are known where those of every part are."""
    counts = [part.passes for part in parts if part.passes is not None]
    passes = sum(counts) if len(counts) == len(parts) else None
    return Spent(
        name=name,
        accelerator_seconds=math.fsum(part.accelerator_seconds for part in parts),
        passes=passes,
    )


def cost_summary(
    config: "SweepConfig",
    stages: Mapping[str, list[Spent]],
    *,
    estimated: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return what leaderboard.json says under `cost`: price, stages, their sum, and trials.

    stages: of `spent_by_stage`; estimated: accelerator-seconds expected of each stage, as far as
    that was known before.
    """
    before = dict(estimated or {})
    sums = [total(name, parts) for name, parts in stages.items()]
    whole = math.fsum(before.values()) if stages.keys() <= before.keys() else None
    return {
        "price_per_accelerator_hour": config.cost.price_per_accelerator_hour,
        "currency": config.cost.currency,
        "stages": [
            one.to_json(config.cost) | _estimate(config.cost, before.get(one.name)) for one in sums
        ],
        "total": total("total", sums).to_json(config.cost) | _estimate(config.cost, whole),
        "trials": [one.to_json(config.cost) for one in stages["search"]],
    }


def _estimate(cost: "CostSettings", seconds: float | None) -> dict[str, Any]:
    return {
        "estimated_accelerator_seconds": seconds,
        "estimated_money": None if seconds is None else cost.money(seconds),
    }


def with_costs(
    board: Mapping[str, Any], config: "SweepConfig", stages: Mapping[str, list[Spent]]
) -> dict[str, Any]:
    """Return a leaderboard whose rows, and groups of rows, say what they cost."""
    rows = [row | {"cost": row_cost(row, config, stages)} for row in board["rows"]]
    groups = []
    for group in board["groups"]:
        own = [row["cost"] for row in rows if row["configuration"] == group["configuration"]]
        seconds = math.fsum(cost["accelerator_seconds"] for cost in own)
        groups.append(
            group | {"cost": {"accelerator_seconds": seconds, "money": config.cost.money(seconds)}}
        )
    return dict(board) | {"rows": rows, "groups": groups}


def row_cost(
    row: Mapping[str, Any], config: "SweepConfig", stages: Mapping[str, list[Spent]]
) -> dict[str, Any]:
    """Return what one row of the leaderboard cost, training and evaluations together.

    row: with the place of its `outcomes`.
    """
    name = row["outcomes"].rpartition("/")[2].removesuffix(".parquet")
    of_model = ("train", *config.evaluation.stages())
    parts = [one for stage in of_model for one in stages.get(stage, []) if one.name == name]
    return {
        key: value
        for key, value in total(name, parts).to_json(config.cost).items()
        if key != "name"
    }


def cost_sentence(cost: dict[str, Any]) -> str:
    """Say in one sentence what everything took."""
    whole = cost["total"]
    money = (
        f", {money_text(whole['money'])} {cost['currency']}" if whole["money"] is not None else ""
    )
    stages = ", ".join(f"{one['name']} {one['accelerator_seconds']:,.0f}" for one in cost["stages"])
    spent = f"{whole['accelerator_seconds']:,.0f}"
    return f"Accelerator-seconds of committed work: {spent}{money} ({stages})."
