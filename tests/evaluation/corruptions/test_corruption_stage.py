"""Accuracy under common corruptions: shards with records of their own, added up for the report."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import digits_shards, trained
from trainings import train_small

from sat_ray.data.shards.reading import read_split
from sat_ray.data.split import Split
from sat_ray.evaluation.corruptions.accuracy import corruption_counts
from sat_ray.evaluation.corruptions.kinds import KINDS
from sat_ray.evaluation.corruptions.summary import accuracies
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.integrations.command_line.parsing import parse
from sat_ray.report.sweep_report import corruption_accuracies
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import EvaluationSettings, ModelSettings, SweepConfig
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.execute import evaluation
from sat_ray.sweep.execute.evaluation import evaluate_and_commit
from sat_ray.sweep.plan.evaluations import corruption_tasks, evaluation_tasks
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import CORRUPTIONS, Dataset
from sat_ray.threat import ThreatModel

CONFIG = SweepConfig(
    recipe="toy",
    threat_model=ThreatModel("linf", 40 / 255),
    model=ModelSettings(width=8),
    evaluation=EvaluationSettings(steps=8, step_size=10 / 255, slots=32),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the digits as shards."""
    return digits_shards(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the records of an empty sweep."""
    return Records(Storage.at(tmp_path / "sweep"))


def config(**changes: Any) -> SweepConfig:
    """Return the toy sweep with corruptions on 60 images in two tasks."""
    chosen = {"corruptions": True, "images": 60, "shard_size": 30} | changes
    return dataclasses.replace(CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, **chosen))


def test_shards_are_committed_once_and_add_up_to_the_whole(
    digits: Split, dataset: Dataset, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train_small(digits, CONFIG.threat_model, activation="silu", epochs=1)
    record = trained(model, records, activation="silu")
    tasks = corruption_tasks(config(), dataset, record)
    assert len(tasks) == 2 and all(task.stage is CORRUPTIONS for task in tasks)
    sweep = Sweep(config(), "toy", records.storage, records.storage, ())
    assert corruption_accuracies(sweep, dataset, record) is None
    made = [evaluate_and_commit(task, records) for task in tasks]
    monkeypatch.setattr(evaluation, "corruption_counts", None)  # nothing is computed again
    assert [evaluate_and_commit(task, records).key for task in tasks] == [one.key for one in made]
    rows = torch.cat([evaluation.rows_of(task) for task in tasks])
    images = read_split(Storage.at(dataset.uri), "test").take(rows)
    counts = corruption_counts(
        model, images, seed=0, slots=CONFIG.evaluation.slots, device=torch.device("cpu")
    )
    assert corruption_accuracies(sweep, dataset, record) == accuracies(counts, 60)
    assert made[0].payload["n"] == 30 and set(made[0].payload["correct"]) == set(KINDS)


def test_without_the_option_there_are_no_tasks_and_no_other_key_changes(
    digits: Split, dataset: Dataset, records: Records
) -> None:
    model = train_small(digits, CONFIG.threat_model, activation="silu", epochs=0)
    record = trained(model, records, activation="silu")
    assert corruption_tasks(CONFIG, dataset, record) == []
    off = evaluation_tasks(config(corruptions=False), dataset, record)
    on = evaluation_tasks(config(), dataset, record)
    assert [task.key for task in off] == [task.key for task in on]
    seeded = corruption_tasks(config(seed=1), dataset, record)
    assert {task.key for task in seeded}.isdisjoint(
        task.key for task in corruption_tasks(config(), dataset, record)
    )


def test_images_that_are_neither_gray_nor_rgb_are_refused(
    digits: Split, dataset: Dataset, records: Records
) -> None:
    model = train_small(digits, CONFIG.threat_model, activation="silu", epochs=0)
    record = trained(model, records, activation="silu")
    other = dataclasses.replace(dataset, manifest=dataset.manifest | {"shape": [4, 8, 8]})
    with pytest.raises(ValueError, match=r"evaluation\.corruptions must be False .* 4 channels"):
        corruption_tasks(config(), other, record)


def test_the_plan_counts_the_corrupted_images(tmp_path: Path) -> None:
    words = ["digits_smoke", "--storage", str(tmp_path / "runs"), "--dry-run"]
    for given, shown in (([], False), (["--evaluation.corruptions"], True)):
        text = describe(parse([*words, *given], RECIPES, default=DEFAULT, about=""))
        assert ("15 kinds, 5 severities" in text) == shown
