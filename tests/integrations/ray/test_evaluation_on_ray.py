"""Exactly once on a cluster: shards as Ray tasks, one worker killed in the middle of its shard, the
outcomes of an undisturbed process.
"""

import itertools
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from repository import paths_of_tests
from sweeps import digits_shards

from sat_ray.attacks import AttackSpec
from sat_ray.checkpoint import load_model, save_model
from sat_ray.data.shards.reading import image_ids, read_split
from sat_ray.evaluation.robustness import evaluate
from sat_ray.integrations.ray.session import ray_session
from sat_ray.integrations.ray.tasks import evaluate_all, evaluate_until_narrow
from sat_ray.models import Normalized, settle_layout
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.records.so_far import Committed
from sat_ray.sweep.records.store import Records, numerical_environment
from sat_ray.sweep.tasks import EVALUATE, EvaluationTask
from sat_ray.threat import ThreatModel

ATTACK = AttackSpec(threat_model=ThreatModel("linf", 40 / 255), steps=60, step_size=4 / 255)
SLOTS = 32


@pytest.fixture
def tasks(digits_model: Normalized, tmp_path: Path) -> list[EvaluationTask]:
    """Return the four shards of one model's test images."""
    dataset = digits_shards(tmp_path / "data")
    assert digits_model.spec is not None
    digest = save_model(
        Storage(str(tmp_path / "model")),
        digits_model.state_dict(),
        spec=digits_model.spec,
        about={},
    )
    common = {
        "checkpoint": str(tmp_path / "model"),
        "checkpoint_sha256": digest,
        "name": "m",
        "attacks": (ATTACK,),
        "seed": 0,
        "slots": SLOTS,
        "dataset": dataset,
        "environment": numerical_environment(accelerator="", threads=1, slots=SLOTS),
    }
    bounds = [0, 230, 450, 700, 899]
    return [
        EvaluationTask(**common, first=first, last=last)
        for first, last in itertools.pairwise(bounds)
    ]  # type: ignore[arg-type]


def is_at_work(process: psutil.Process) -> bool:
    """Say whether a process evaluates a shard now:
    Ray gives a worker its task's name for that long.
    """
    try:
        return " ".join(process.cmdline()).startswith("ray::evaluate_and_commit")
    except psutil.Error:
        return False  # it has ended, or is not ours


def worker_at_work() -> psutil.Process | None:
    """Return a process of this test's own Ray that evaluates a shard."""
    return next(filter(is_at_work, psutil.Process().children(recursive=True)), None)


def kill_one_worker(killed: list[int], *, over: threading.Event) -> None:
    """Wait for a process that evaluates a shard, let it compute for half a second of its
    processor's time, and kill it.
    """
    while not killed and not over.wait(0.02):
        process = worker_at_work()
        if process is not None and _is_at_work_after(0.5, process, over):
            process.kill()
            killed.append(process.pid)


def _is_at_work_after(seconds: float, process: psutil.Process, over: threading.Event) -> bool:
    try:
        begun = process.cpu_times().user
        while process.cpu_times().user < begun + seconds:
            if over.wait(0.02) or not is_at_work(process):
                return False
    except psutil.Error:
        return False
    return is_at_work(process)


def stops_once_the_interval_is_narrow(tasks: list[EvaluationTask], folder: Path) -> None:
    """Evaluate shuffled shards one by one until the interval is 0.3 wide: one of four will do."""
    import ray  # the session has set its environment before

    spec = replace(ATTACK, steps=5, step_size=8 / 255, name="")
    shuffled = [replace(task, shuffled=True, attacks=(spec,)) for task in tasks]
    records = Records(Storage(str(folder / "stopped")))
    alone = ResourceSettings(cpus_per_evaluation=int(ray.cluster_resources()["CPU"]))
    evaluate_until_narrow(shuffled, records, alone, width=0.3)
    committed = Committed(shuffled, records)
    found = committed.look()
    assert found.narrow(0.3) and 0 < found.seen < found.total == 899
    assert committed.count == 1
    evaluate_until_narrow(shuffled, records, alone, width=0.3)
    assert Committed(shuffled, records).look() == found


def test_a_worker_killed_in_the_middle_of_a_shard_loses_and_doubles_nothing(
    tasks: list[EvaluationTask], tmp_path: Path
) -> None:
    records = Records(Storage(str(tmp_path / "sweep")))
    killed, over = list[int](), threading.Event()
    with ray_session():
        killer = threading.Thread(target=kill_one_worker, args=(killed,), kwargs={"over": over})
        killer.start()
        try:
            evaluate_all(tasks, records, ResourceSettings())
        finally:
            over.set()
            killer.join()
        evaluate_all(
            tasks, records, ResourceSettings(cpus_per_evaluation=1000)
        )  # all committed: nothing is asked for, else it waits
        stops_once_the_interval_is_narrow(tasks, tmp_path)
    assert killed, "no worker was caught in the middle of a shard"
    assert records.keys(EVALUATE) == sorted(task.key for task in tasks)
    path = merge_outcomes(
        records.each(EVALUATE),
        image_ids(Storage(tasks[0].dataset.uri), "test").numpy(),
        records,
        name="m",
    )
    merged = pq.read_table(str(tmp_path / "sweep" / path))
    test = read_split(Storage(tasks[0].dataset.uri), "test")
    model = load_model(tasks[0].checkpoint)
    settle_layout(model)
    alone = evaluate(model, test.images, test.labels, test.image_ids, attacks=[ATTACK], slots=SLOTS)
    assert merged.equals(alone)


def die_at_first(task: str, records: Records, *, gpus: float) -> None:
    """Do as on a node whose disk is full: die at once, five times."""
    with open(task, "a") as deaths:
        deaths.write(f"{time.time()}\n")
    if Path(task).read_text().count("\n") <= 5:
        os._exit(1)


@pytest.mark.fault  # a minute of pauses
def test_a_task_whose_process_dies_again_and_again_is_tried_again_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sat_ray.integrations.ray.tasks import _run_all

    monkeypatch.setenv("PYTHONPATH", paths_of_tests(), prepend=os.pathsep)
    with ray_session():
        _run_all(
            die_at_first,
            [str(tmp_path / "deaths")],
            Records(Storage(str(tmp_path))),
            ResourceSettings(),
        )  # type: ignore[arg-type]
    times = [float(line) for line in (tmp_path / "deaths").read_text().splitlines()]
    assert len(times) == 6
    assert all(later - earlier > 4 for earlier, later in itertools.pairwise(times))
