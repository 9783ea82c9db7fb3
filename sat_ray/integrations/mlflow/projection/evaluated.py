"""An evaluated model on its run: accuracies with intervals, outcomes, cost, weights."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sat_ray.evaluation.corruptions.summary import mean_accuracy
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.integrations.mlflow.metrics import cost_metrics
from sat_ray.integrations.mlflow.projection.runs import Runs, now
from sat_ray.integrations.mlflow.values import Point
from sat_ray.report.sweep_report import corruption_accuracies, outcome_paths, read_outcomes
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.tasks import CARD, CORRUPTIONS, EVALUATE, STRONG, VALIDATE
from sat_ray.utils.serialization import json_bytes

if TYPE_CHECKING:
    from sat_ray.report.leaderboard.summary import Summary


SYSTEM = "system/"  # MLflow shows metrics with this prefix as system metrics


def write_loads(runs: Runs, trained: Sequence[Record]) -> None:
    """Write what workers used for each new shard and card to the run of the model."""
    models = {record.payload["name"]: record for record in trained}
    found: dict[str, list[Point]] = {}
    for stage in (VALIDATE, EVALUATE, STRONG, CORRUPTIONS, CARD):
        for shard in runs.records.new(stage):
            found.setdefault(shard.payload["name"], []).extend(_load_points(shard))
    for name in found.keys() & models.keys():
        record = models[name]
        run_id = runs.finalist(record)
        # a run that shows the evaluation has these points
        if not runs.tracker.is_complete(run_id, content=runs.evaluated_content(record)):
            runs.tracker.log(run_id, found[name])


def _load_points(shard: Record) -> list[Point]:
    """Return what a worker used for a shard or a card; step: the shard's first row."""
    first, _ = shard.inputs.get("rows", (0, 0))
    return [
        Point(f"{SYSTEM}{shard.stage}/{name.removeprefix(SYSTEM)}", value, first, shard.created)
        for name, value in shard.payload.items()
        if name.startswith(SYSTEM)
    ]


def write_evaluated(runs: Runs, record: Record, path: str, *, cost: Mapping[str, Any]) -> str:
    """Write the evaluation of a trained model and return its run. path: of the outcomes of PGD."""
    run_id = runs.finalist(record)
    content = runs.evaluated_content(record)
    if runs.tracker.is_complete(run_id, content=content):
        return run_id
    values = _write_outcomes(runs, record, run_id, path)
    if found := corruption_accuracies(runs.sweep, runs.dataset(), record):
        values["eval/corruption_accuracy"] = mean_accuracy(found)
    runs.tracker.artifact(run_id, "config.json", json_bytes(record.inputs))
    runs.uses(run_id, "test")
    runs.attach_model(record)
    step = record.payload["until"]
    points = [Point(name, value, step, record.created) for name, value in values.items()]
    points += now(cost_metrics(cost), step=step)
    runs.tracker.complete(run_id, content=content, points=points)
    return run_id


def _write_outcomes(runs: Runs, record: Record, run_id: str, path: str) -> dict[str, float]:
    """Attach the outcomes of all attacks to a run; return their metrics, the strong ones first."""
    from sat_ray.report.leaderboard.summary import summarise

    storage = runs.sweep.storage
    summary = summarise(read_outcomes(runs.sweep.records, path))
    values = {
        "eval/robust_accuracy": summary.robust_accuracy,
        "eval/robust_accuracy_low": summary.robust_accuracy_interval[0],
        "eval/robust_accuracy_high": summary.robust_accuracy_interval[1],
        "eval/clean_accuracy": summary.clean_accuracy,
        "cost/passes_per_image": summary.passes_per_image,
    }
    for strong in outcome_paths(runs.sweep.config, record.payload["name"])[1:]:
        values = _strong_metrics(read_outcomes(runs.sweep.records, strong), summary) | values
        runs.tracker.artifact(run_id, "strong_outcomes.parquet", storage.read(strong))
    runs.tracker.artifact(run_id, "outcomes.parquet", storage.read(path))
    return values


def _strong_metrics(table: pa.Table, usual: "Summary") -> dict[str, float]:
    """Return the metrics of the strong verdict.

    table: outcomes of the images that `usual` counts as robust.
    """
    survivors = len(robust_image_ids(table))
    low, high = wilson_interval(survivors, usual.n)
    return {
        "eval/strong_robust_accuracy": survivors / usual.n,
        "eval/strong_robust_accuracy_low": low,
        "eval/strong_robust_accuracy_high": high,
        "eval/verdict_gap": usual.robust_accuracy - survivors / usual.n,
    }
