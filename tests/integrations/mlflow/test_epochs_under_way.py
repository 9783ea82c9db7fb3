"""In MLflow while a sweep runs: epochs, read from saved states, and what evaluations used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from sweeps import digits_shards, parsed

from sat_ray.integrations.mlflow import MlflowTracker
from sat_ray.integrations.mlflow.projection.whole import Projection
from sat_ray.storage.store import Storage
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.execute.evaluation import card_and_commit, evaluate_and_commit
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.plan.evaluations import card_tasks, strong_tasks
from sat_ray.sweep.plan.trainings import final_tasks, trial_task
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import SEARCH, Dataset, TrainingTask
from sat_ray.training.resume.checkpointing import saved_epochs
from sat_ray.training.resume.state import EpochReport

WORDS = (
    *("digits_smoke", "--training.epochs", "4", "--training.validate-every", "2"),
    *("--model.width", "4", "--search.rungs", "1", "2", "--final.seeds", "0"),
    *("--training.attack-steps", "1", "--training.validation-steps", "4"),
    *("--evaluation.images", "30", "--evaluation.shard-size", "15", "--evaluation.steps", "20"),
    *("--evaluation.strong-steps", "4", "--evaluation.strong-targets", "1"),
    *("--card.images", "10", "--card.cascade-steps", "4", "--card.cascade-queries", "5"),
)
SILU = SearchPoint(activation="silu", alpha=1.0)
EPOCH = 300  # images: less than an epoch, so that a state is saved inside of each


class Killed(BaseException):
    """The end of a worker."""


@pytest.fixture
def sweep(tmp_path: Path, fresh: Callable[[Path], str]) -> Sweep:
    """Return a sweep with prepared digits of which nothing is trained, beside a database."""
    fresh(tmp_path)
    config = parsed(*WORDS).config
    root = Storage(str(tmp_path / "runs"))
    digits_shards(Path(dataset_uri(config, root)))
    return Sweep(config, "s", root, root.child("s"), ())


def data_of(sweep: Sweep) -> Dataset:
    data = Dataset.open(dataset_uri(sweep.config, sweep.root))
    assert data is not None
    return data


def projection(sweep: Sweep, folder: Path, experiment: str = "live") -> Projection:
    """Connect to MLflow as a driver does when it starts."""
    tracker = MlflowTracker(
        f"sqlite:///{folder}/mlflow.db",
        experiment=experiment,
        artifact_root=str(folder / experiment),
    )
    return Projection(sweep, tracker)


def runs(folder: Path, kind: str, experiment: str = "live") -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], f"tags.sat_ray.kind = '{kind}'"))


def points(folder: Path, run: Run) -> dict[str, list[tuple[int, float, int]]]:
    """Return (step, value, time) of every point of a run's epochs by metric."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = {
        name: client.get_metric_history(run.info.run_id, name)
        for name in run.data.metrics
        if not name.startswith("cost/")
    }
    return {
        name: sorted((one.step, one.value, one.timestamp) for one in history)
        for name, history in found.items()
    }


def killed_after(epochs: int) -> Callable[[EpochReport], None]:
    def after(report: EpochReport) -> None:
        if report.epoch + 1 == epochs:
            raise Killed

    return after


def train(sweep: Sweep, task: TrainingTask, **more: Any) -> Record:
    return train_and_commit(task, sweep.records, checkpoint_images=EPOCH, **more)


def test_epochs_appear_while_a_training_runs_and_the_end_is_the_same_after_a_kill(
    sweep: Sweep, tmp_path: Path
) -> None:
    (task,) = final_tasks(sweep.config, data_of(sweep), [SILU])
    with pytest.raises(Killed):
        train(sweep, task, on_epoch=killed_after(3))
    first = projection(sweep, tmp_path)
    first.update()
    (run,) = runs(tmp_path, "finalist")
    early = points(tmp_path, run)
    assert run.info.status == "RUNNING" and run.info.run_name == "silu · seed 0"
    assert [step for step, *_ in early["train/loss"]] == [1, 2]
    assert [step for step, *_ in early["val/robust_accuracy"]] == [2]
    assert [step for step, *_ in early["system/worker_cpus"]] == [1, 2]
    first.update()
    assert points(tmp_path, runs(tmp_path, "finalist")[0]) == early, "written once"

    again = projection(sweep, tmp_path)  # another driver, and workers that go on from the state
    again.update()
    record = train(sweep, task, on_epoch=lambda report: again.update())
    for _ in range(2):
        again.update()
    (ended,) = runs(tmp_path, "finalist")
    assert ended.info.run_id == run.info.run_id and ended.info.status == "FINISHED"
    assert saved_epochs(sweep.storage, task.key) == ([], [])

    projection(sweep, tmp_path, "afterwards").update()
    (only,) = runs(tmp_path, "finalist", "afterwards")
    assert points(tmp_path, ended) == points(tmp_path, only)
    assert ended.data.metrics == only.data.metrics and ended.data.params == only.data.params
    history = record.payload["history"]
    assert [value for _, value, _ in points(tmp_path, ended)["train/loss"]] == [
        row["train/loss"] for row in history
    ]
    times = [time for *_, time in points(tmp_path, ended)["train/loss"]]
    assert times == [round(1000 * end) for end in record.payload["history_times"]]
    assert times == sorted(set(times)), "each epoch at its own time"
    assert all(early[name] == points(tmp_path, ended)[name][: len(early[name])] for name in early)


def test_what_the_workers_of_evaluation_and_card_used_is_on_the_run_of_the_model(
    sweep: Sweep, tmp_path: Path
) -> None:
    data = data_of(sweep)
    (task,) = final_tasks(sweep.config, data, [SILU])
    record = train(sweep, task)
    first, second = strong_tasks(sweep.config, data, record)
    live = projection(sweep, tmp_path)
    shards = [evaluate_and_commit(first, sweep.records)]
    live.update()
    (run,) = runs(tmp_path, "finalist")
    early = points(tmp_path, run)
    assert [step for step, *_ in early["system/strong/worker_cpus"]] == [0], "before all are done"

    shards.append(evaluate_and_commit(second, sweep.records))
    (card,) = [
        card_and_commit(one, sweep.records) for one in card_tasks(sweep.config, data, [record], {})
    ]
    for driver in (live, live, projection(sweep, tmp_path)):
        driver.update()
    found = points(tmp_path, runs(tmp_path, "finalist")[0])
    for name in ("worker_cpus", "worker_memory_gib"):
        of_card = (0, card.payload[f"system/{name}"], round(1000 * card.created))
        assert found[f"system/card/{name}"] == [of_card]
        of_shards = [
            (shard.inputs["rows"][0], shard.payload[f"system/{name}"], round(1000 * shard.created))
            for shard in shards
        ]
        assert found[f"system/strong/{name}"] == of_shards, "each shard once"
        assert [step for step, *_ in found[f"system/evaluate/{name}"]] == [0, 15]
        assert found[f"system/{name}"] == early[f"system/{name}"], "those of training stay"
    assert all(value > 0 for _, value, _ in found["system/card/worker_cpus"])


def test_a_trial_shows_its_epochs_from_rung_to_rung_and_none_twice(
    sweep: Sweep, tmp_path: Path
) -> None:
    task = trial_task(sweep.config, data_of(sweep), SILU)
    live = projection(sweep, tmp_path)
    short = train(sweep, task.at(1), on_epoch=lambda report: live.update())
    live.update()
    with pytest.raises(Killed):
        train(sweep, task.at(2), previous=short, on_epoch=killed_after(2))
    live.update()
    train(sweep, task.at(2), previous=short)
    live.update()
    (run,) = runs(tmp_path, "trial")
    assert [step for step, *_ in points(tmp_path, run)["train/loss"]] == [1, 2]
    assert len(sweep.records.all(SEARCH)) == 2


def test_a_training_that_began_anew_shows_no_epoch_of_the_attempt_before(
    sweep: Sweep, tmp_path: Path
) -> None:
    (task,) = final_tasks(sweep.config, data_of(sweep), [SILU])
    live = projection(sweep, tmp_path)
    with pytest.raises(Killed):
        train(sweep, task, on_epoch=killed_after(3))
    live.update()
    (before,) = runs(tmp_path, "finalist")
    (begun,) = sweep.records.begun()
    sweep.records.supersede(begun)  # as for code that has changed
    with pytest.raises(Killed):
        train(sweep, task, on_epoch=killed_after(2))
    live.update()
    (run,) = runs(tmp_path, "finalist")
    assert run.info.run_id != before.info.run_id
    assert [step for step, *_ in points(tmp_path, run)["train/loss"]] == [1, 2]
    train(sweep, task)
    live.update()
    (run,) = runs(tmp_path, "finalist")
    assert [step for step, *_ in points(tmp_path, run)["train/loss"]] == [1, 2, 3, 4]


def test_a_damaged_state_and_one_that_is_gone_are_left_out(sweep: Sweep, tmp_path: Path) -> None:
    (task,) = final_tasks(sweep.config, data_of(sweep), [SILU])
    with pytest.raises(Killed):
        train(sweep, task, on_epoch=killed_after(3))
    rows, times = saved_epochs(sweep.storage, task.key)
    assert [row["epoch"] for row in rows] == [0, 1] and len(times) == 2
    for folder in ("state/progress", "state/progress/second"):
        sweep.storage.write(f"{folder}/{task.key}.safetensors", b"\xff" * 40)
    sweep.storage.write("state/progress/gone.safetensors", b"")
    assert saved_epochs(sweep.storage, task.key) == ([], [])
    projection(sweep, tmp_path).update()
    assert runs(tmp_path, "finalist") == []
