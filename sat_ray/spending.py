"""What a sweep has spent, from its committed records: accelerator-seconds, passes and money, by stage and by piece of work.

    accelerator-seconds = seconds · workers · GPUs of each (1 where there is none: then they are seconds of worker processes)
    money = accelerator-seconds / 3600 · price of an accelerator-hour

Time that ended in no record (a killed attempt, start-up, an idle node) is not in it: what a cloud bills is more.
"""

import math
from dataclasses import dataclass
from typing import Any

from sat_ray.config import CostSettings, SweepConfig
from sat_ray.plan import CARD, EVALUATE, TRAIN, longest_trials
from sat_ray.stages import Record, Records


@dataclass(frozen=True, kw_only=True)
class Spent:
    """One piece of work, or a sum. passes: forward and backward passes of one image, None where they were not counted."""

    name: str
    accelerator_seconds: float
    passes: int | None = None

    def to_json(self, cost: CostSettings) -> dict[str, Any]:
        """Return plain values; money: None without a price."""
        seconds = self.accelerator_seconds
        return {"name": self.name, "accelerator_seconds": seconds, "passes": self.passes, "money": cost.money(seconds)}


def spent_by_stage(config: SweepConfig, records: Records, *, train_images: int) -> dict[str, list[Spent]]:
    """Return every committed piece of work of the stages that take accelerators. train_images: of the split that training sees."""
    asked = config.resources
    per_epoch = train_images * config.training.passes_per_image()
    trials = [_training(record, gpus=asked.gpus_per_trial, per_epoch=per_epoch) for record in longest_trials(records)]
    trainings = [_training(record, gpus=asked.gpus_per_worker, per_epoch=per_epoch) for record in records.all(TRAIN)]
    gpus = asked.gpus_per_evaluation or 1
    shards = [
        Spent(name=one.payload["name"], accelerator_seconds=one.seconds * gpus, passes=one.payload["passes"])
        for one in records.all(EVALUATE)
    ]
    cards = [Spent(name=one.payload["name"], accelerator_seconds=one.seconds * gpus) for one in records.all(CARD)]
    return {"search": trials, "train": trainings, "evaluate": shards, "card": cards}


def _training(record: Record, *, gpus: float, per_epoch: float) -> Spent:
    payload = record.payload
    return Spent(name=payload["name"], accelerator_seconds=training_seconds(record, gpus=gpus), passes=round(payload["until"] * per_epoch))


def training_seconds(record: Record, *, gpus: float) -> float:
    """Return the accelerator-seconds of a training, all rungs of a trial together. gpus: of each worker, 0 where it has none."""
    return float(record.payload["accelerator_seconds"] * (gpus or 1))


def search_seconds(records: Records, *, gpus: float) -> float:
    """Return the accelerator-seconds of the committed trials of a search. gpus: of each trial."""
    return math.fsum(training_seconds(record, gpus=gpus) for record in longest_trials(records))


def total(name: str, parts: list[Spent]) -> Spent:
    """Add pieces of work up; the passes of a sum are known where those of every part are."""
    counts = [part.passes for part in parts if part.passes is not None]
    passes = sum(counts) if len(counts) == len(parts) else None
    return Spent(name=name, accelerator_seconds=math.fsum(part.accelerator_seconds for part in parts), passes=passes)


def cost_summary(config: SweepConfig, records: Records, *, train_images: int) -> dict[str, Any]:
    """Return what leaderboard.json says under `cost`: the price, every stage, their sum, and every trial of the search."""
    stages = spent_by_stage(config, records, train_images=train_images)
    sums = [total(name, parts) for name, parts in stages.items()]
    return {
        "price_per_accelerator_hour": config.cost.price_per_accelerator_hour,
        "currency": config.cost.currency,
        "stages": [one.to_json(config.cost) for one in sums],
        "total": total("total", sums).to_json(config.cost),
        "trials": [one.to_json(config.cost) for one in stages["search"]],
    }


def row_cost(row: dict[str, Any], config: SweepConfig, stages: dict[str, list[Spent]]) -> dict[str, Any]:
    """Return what one row of the leaderboard cost, training and evaluation together. row: with the place of its `outcomes`."""
    name = row["outcomes"].rpartition("/")[2].removesuffix(".parquet")
    parts = [one for stage in ("train", "evaluate") for one in stages[stage] if one.name == name]
    return {key: value for key, value in total(name, parts).to_json(config.cost).items() if key != "name"}


def cost_sentence(cost: dict[str, Any]) -> str:
    """Say in one sentence what everything took."""
    whole = cost["total"]
    money = f", {whole['money']:,.2f} {cost['currency']}" if whole["money"] is not None else ""
    stages = ", ".join(f"{one['name']} {one['accelerator_seconds']:,.0f}" for one in cost["stages"])
    return f"Accelerator-seconds of committed work: {whole['accelerator_seconds']:,.0f}{money} ({stages})."


def cost_markdown(cost: dict[str, Any]) -> str:
    """Draw the stages as a Markdown table."""
    priced, currency = bool(cost["price_per_accelerator_hour"]), cost["currency"]
    head = ["stage", "accelerator-seconds", "passes (million)", *([currency] if priced else [])]
    lines = ["| " + " | ".join(head) + " |", "| :-- |" + " --: |" * (len(head) - 1)]
    for one in (*cost["stages"], cost["total"]):
        passes = "not counted" if one["passes"] is None else f"{one['passes'] / 1e6:.2f}"
        cells = [one["name"], f"{one['accelerator_seconds']:,.0f}", passes, *([f"{one['money']:,.2f}"] if priced else [])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n## What it took\n\n" + "\n".join(lines) + "\n"
