"""A session of Ray Train workers that meets what it cannot mend: one line, once it has met it
twice, and not after eight starts.
"""

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from small_rays import ray_of_one_node, task_in
from waiting import until

from sat_ray.integrations.ray.private import ended_jobs
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.cost.budget import Budget
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import SEARCH, TRAIN, TrainingTask


@pytest.fixture(scope="module")
def ray_of_two_cpus() -> Iterator[None]:
    """Start a Ray with room for two workers."""
    with ray_of_one_node(num_cpus=2):
        yield


@pytest.fixture
def task(tmp_path: Path) -> TrainingTask:
    """Describe a short training on digits."""
    return task_in(tmp_path / "data", epochs=1, validate_every=1)


def spoil_first_shard(folder: Path) -> bytes:
    """Change one byte of the first training shard; return what it was."""
    shard = min((folder / "data").glob("train-*.parquet"))
    sound = shard.read_bytes()
    shard.write_bytes(sound[:100] + bytes([sound[100] ^ 1]) + sound[101:])
    return sound


@pytest.mark.fault
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_damaged_shard_ends_a_session_with_one_line_and_a_sound_one_is_trained_on(
    task: TrainingTask, tmp_path: Path
) -> None:
    from sat_ray.integrations.ray.train import train_all

    records, resources = (
        Records(Storage(str(tmp_path / "sweep"))),
        ResourceSettings(train_workers=2),
    )
    sound = spoil_first_shard(tmp_path)
    with pytest.raises(ArithmeticError, match=rf"^{task.name}: .*train-.*parquet.*") as caught:
        train_all([task], records, resources)
    assert "\n" not in str(caught.value)
    assert records.find(TRAIN, task.key) is None
    min((tmp_path / "data").glob("train-*.parquet")).write_bytes(sound)
    train_all([task], records, resources)
    assert records.find(TRAIN, task.key) is not None


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_workers_of_another_processor_than_the_drivers_refuse_to_train(
    task: TrainingTask, tmp_path: Path
) -> None:
    from sat_ray.integrations.ray.train import train_all

    other = dataclasses.replace(task, environment=task.environment | {"device": "cpu:OTHER"})
    with pytest.raises(
        ArithmeticError, match=r"this node's processor computes with \w+, the driver's with OTHER"
    ):
        train_all(
            [other], Records(Storage(str(tmp_path / "sweep"))), ResourceSettings(train_workers=2)
        )


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_two_groups_share_the_tasks_and_train_what_one_worker_trains_alone(
    task: TrainingTask, tmp_path: Path
) -> None:
    from ray.util import placement_group_table

    from sat_ray.integrations.ray.train import train_all

    groups_before = len(placement_group_table())
    tasks = [dataclasses.replace(task, seed=seed) for seed in (0, 1, 2)]
    together, alone = (Records(Storage(str(tmp_path / name))) for name in ("together", "alone"))
    train_all(tasks, together, ResourceSettings(train_workers=1, train_groups=2))
    made = [found for each in tasks if (found := together.find(TRAIN, each.key))]
    assert [record.content for record in made] == [
        train_and_commit(each, alone).content for each in tasks
    ]
    assert len(placement_group_table()) == groups_before + 2
    until(lambda: not controllers(), what="the end of the processes that led the two groups")


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_leader_that_lost_a_process_is_followed_by_another(
    task: TrainingTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on a Kubernetes: the kernel ended a raylet while the group's leader called a worker.
    Any other error of a leader ends the stage.
    """
    import ray

    from sat_ray.integrations.ray import train

    gone = ray.exceptions.ActorUnavailableError("Socket closed", None)
    errors = [ray.train.ControllerError(gone), ray.train.ControllerError(TypeError("other"))]

    def failing(*_: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(train, "_train_in_groups", failing)
    with pytest.raises(ray.train.ControllerError, match="other"):
        train.train_all([task], Records(Storage(str(tmp_path))), ResourceSettings())
    assert not errors


RESERVE = """
import sys, ray
ray.init(sys.argv[1], namespace=sys.argv[2])
for name in ("", "kept"):
    group = ray.util.placement_group([{"CPU": 0.1}], name=name, lifetime="detached")
    ray.get(group.ready())
"""


@pytest.mark.usefixtures("ray_of_two_cpus")
def test_what_an_ended_job_reserved_is_removed_unless_it_has_a_name() -> None:
    """Detached groups stand for those that a head finds in Redis after its restart."""
    import ray

    from sat_ray.integrations.ray.local.orphans import remove_orphans

    here = ray.get_runtime_context()
    other = [sys.executable, "-c", RESERVE, here.gcs_address, here.namespace]
    subprocess.run(other, check=True, capture_output=True)
    until(ended_jobs, what="the end of the other job")
    remove_orphans()
    table = ray.util.placement_group_table().values()
    assert [one["name"] for one in table if one["state"] != "REMOVED"] == ["kept"]
    ray.util.remove_placement_group(ray.util.get_placement_group("kept"))


def controllers() -> list[int]:
    """Return the processes below this one that lead a group of workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ray::TrainController" in process.cmdline():
                found.append(process.pid)
    return found


def fill(disk: Path) -> None:
    """Write to a disk until it takes nothing more."""
    with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)):
            pass


@pytest.mark.fault
@pytest.mark.usefixtures("ray_of_two_cpus")
def test_a_full_disk_ends_a_session_and_a_search_with_one_line_and_room_lets_both_go_on(
    task: TrainingTask, small_disk: Path
) -> None:
    """Started again and again it would end the same way: forty starts of a session,
    three of every trial.
    """
    from sat_ray.integrations.ray.search.trials import run_rung
    from sat_ray.integrations.ray.train import train_all

    records, resources = (
        Records(Storage(str(small_disk / "sweep"))),
        ResourceSettings(train_workers=2),
    )
    records.storage.write("state/there", b"")
    trial = dataclasses.replace(task, stage=SEARCH)
    fill(small_disk)
    began = time.monotonic()
    with pytest.raises(
        ArithmeticError, match=rf"^{task.name}: .*No space left on device"
    ) as caught:
        train_all([task], records, resources)
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match="No space left on device") as lost:
        run_rung(
            [trial, trial],
            [None, None],
            records,
            resources,
            budget=Budget(accelerator_seconds=None, gpus=0),
            exempt=[],
        )
    assert "\n" not in str(lost.value)
    assert time.monotonic() - began < 120
    (small_disk / "ballast").unlink()
    train_all([task], records, resources)
    assert records.find(TRAIN, task.key) is not None
    assert not list(small_disk.rglob("*.pkl")) and not records.storage.folders("state/ray")
