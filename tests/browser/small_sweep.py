"""A small sweep computed, tracked and reported for real in this process, one unit after the other:
no Ray.
"""

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from sweeps import parsed

from sat_ray.data.shards.reading import image_ids
from sat_ray.evaluation.card import PASS
from sat_ray.evaluation.robustness import counted_robust_ids
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.checks.claims import claim_folder, sweep_of
from sat_ray.integrations.mlflow import MlflowTracker
from sat_ray.integrations.mlflow.projection.whole import Projection
from sat_ray.integrations.ray.search.grid_search import committed_finalists
from sat_ray.report.sweep_report import read_outcomes, strong_name
from sat_ray.storage.store import Storage
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.execute.evaluation import card_and_commit, evaluate_and_commit
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.evaluations import (
    card_tasks,
    evaluation_tasks,
    strong_on_validation,
    strong_tasks,
    validation_tasks,
)
from sat_ray.sweep.plan.trainings import final_tasks, trial_task
from sat_ray.sweep.records.merge_outcomes import merge_outcomes

RECIPE = "digits_smoke"
REGISTERED = "digits-small_resnet-linf-16-255"
SWEEP = (
    RECIPE,
    *shlex.split("--search.activations relu silu:1 parametric_softplus:5,10 --search.pairs"),
    *shlex.split("--search.rungs 1 --training.epochs 2 --final.seeds 0 1 2"),
    *shlex.split("--evaluation.steps 20 --evaluation.step-size 0.03"),
    *shlex.split("--cost.price-per-accelerator-hour 36 --cost.currency EUR"),
    *shlex.split("--resources.images-per-second 500"),
)


@dataclasses.dataclass(frozen=True)
class Made:
    """A finished sweep: its folder, its board, and where its runs are."""

    folder: Path
    board: dict[str, Any]
    client: MlflowClient
    store: str
    parent: str
    links: dict[str, str]  # relative to the address of MLflow's server

    def runs(self, kind: str) -> dict[str, Any]:
        """Return the runs of a kind by name."""
        experiment = self.client.get_experiment_by_name(RECIPE)
        found = self.client.search_runs(
            [experiment.experiment_id], f"tags.sat_ray.kind = '{kind}'", max_results=100
        )
        return {run.info.run_name: run for run in found}


def compute(sweep: Sweep) -> tuple[Any, ...]:
    """Commit everything that a sweep computes, one unit after the other;
    return what its report needs.
    """
    config, records = sweep.config, sweep.records
    data = stages.prepare(sweep)
    for configuration in config.search.points():
        train_and_commit(trial_task(config, data, configuration).at(1), records)
    finalists = committed_finalists(config, data, records)
    assert finalists is not None
    models = [train_and_commit(task, records) for task in final_tasks(config, data, finalists)]
    for model in models:
        for task in validation_tasks(config, data, model):
            evaluate_and_commit(task, records)
    strong = strong_on_validation(config, data, models, records)
    assert strong is not None
    cards = []
    for task in card_tasks(config, data, models, strong):
        cards.append(card_and_commit(task, records))
        if cards[-1].payload["card"]["verdict"] == PASS:
            break
    expected, outcomes = image_ids(Storage(data.uri), "test").numpy(), {}
    for model in models:
        parts = [
            evaluate_and_commit(task, records) for task in evaluation_tasks(config, data, model)
        ]
        name = model.payload["name"]
        outcomes[name] = merge_outcomes(parts, expected, records, name=name)
        strong_parts = [
            evaluate_and_commit(task, records) for task in strong_tasks(config, data, model)
        ]
        alive = counted_robust_ids(read_outcomes(records, outcomes[name]))
        merge_outcomes(strong_parts, alive, records, name=strong_name(name))
    return data, models, cards, outcomes


def make_sweep(root: Path) -> Made:
    """Run the whole of a sweep below a folder."""
    torch.set_num_threads(1)
    store = f"sqlite:///{root}/mlflow.db"
    command = parsed(*SWEEP, "--storage", str(root))
    claim_folder(command)
    sweep = sweep_of(command)
    data, models, cards, outcomes = compute(sweep)
    os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "1"
    tracker = MlflowTracker(store, experiment=RECIPE, artifact_root=str(root / "mlartifacts"))
    projection = Projection(sweep, tracker)
    with tracker.watch(projection.parent):
        run_ids = projection.finish(models, outcomes)
        board = stages.report(sweep, data, models, cards, outcomes, run_ids)
        projection.register(board, cards, override="a small model for the tests")
        projection.close(board)
        links = projection.links(board, pages="")
    return Made(
        Path(sweep.storage.uri), board, MlflowClient(store, store), store, projection.parent, links
    )
