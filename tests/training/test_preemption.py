"""A machine that is announced to go away costs no more than a few seconds of training."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_rays import OBJECT_STORE, ray_of_one_node, task_in
from trainings import assert_same_bits, kept_states, small_model, train

from sat_ray.checkpoint import load_model
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import TRAIN
from sat_ray.training.loop import TrainingState
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.checkpointing import StateFiles
from sat_ray.training.resume.preemption import LOOK_SECONDS, PreemptionWatcher


def questions(step_seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return after which of the steps, each of so many seconds, the question is asked."""
    clock, asked = [0.0], list[int]()
    monkeypatch.setattr("sat_ray.training.resume.preemption.perf_counter", lambda: clock[0])

    def leaving() -> bool:
        asked.append(step)
        return False

    watcher = PreemptionWatcher(leaving, ProcessGroup())
    for step, seconds in enumerate(step_seconds, start=1):  # noqa: B007 - leaving reads it
        clock[0] += seconds
        assert not watcher.sees_notice(now=False)
    return asked


def test_the_question_is_asked_every_five_seconds_whatever_a_step_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert LOOK_SECONDS == 5
    assert questions([0.5] * 31, monkeypatch) == [1, 11, 21, 31]
    assert questions([7.0] * 4, monkeypatch) == [1, 2, 3, 4]
    assert questions([9.0, *[0.125] * 60], monkeypatch) == [
        1,
        2,
        42,
    ]  # the first step compiles: its pace is nobody's


def test_nothing_is_asked_where_there_is_nothing_to_ask() -> None:
    assert not PreemptionWatcher(None, ProcessGroup()).sees_notice(now=True)


@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_notice_brings_checkpoints_and_changes_no_bit(
    first: int, digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps an epoch; the notice stands from the question after step `first` on, and each
    question is followed by a checkpoint.
    """
    monkeypatch.setattr(
        "sat_ray.training.resume.preemption.LOOK_SECONDS", 0.0
    )  # a question after every step
    numbers, (seen, options) = itertools.count(1), kept_states(0)
    options["preemption_announced"] = lambda: next(numbers) >= first
    told = train(small_model(), digits, **options)[-1].state
    undisturbed = train(small_model(), digits)[-1].state
    steps = [(epoch, step) for epoch in range(2) for step in range(1, 5)]
    assert [(state.epoch, state.step) for state in seen] == steps[first - 1 :]
    assert_same_bits(told, undisturbed)
    assert_same_bits(train(small_model(), digits, state=seen[0])[-1].state, undisturbed)


def test_the_last_step_of_an_epoch_always_asks(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sat_ray.training.resume.preemption.LOOK_SECONDS", 1e9)
    seen = list[tuple[int, int]]()
    train(
        small_model(),
        digits,
        preemption_announced=lambda: True,
        on_checkpoint=lambda state: seen.append((state.epoch, state.step)),
    )
    assert seen == [(0, 1), (0, 4), (1, 4)]  # the first question learns the pace


DRAIN_SECONDS = 20
EPOCHS = 150  # of a third of a second or more: they have to outlast the node


@pytest.fixture
def head() -> Iterator[Any]:
    """Start a Ray node with one CPU and yield its cluster."""
    with ray_of_one_node() as cluster:
        yield cluster


@pytest.fixture
def spot(head: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start another node with one CPU as a pod would, and yield its process."""
    import ray

    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        f"--address={head.address}",
        "--num-cpus=1",
        "--block",
    ]
    command += ["--disable-usage-stats", f"--object-store-memory={OBJECT_STORE}"]
    with subprocess.Popen(
        command,
        env=os.environ | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_SECONDS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 120
        while len(ray.nodes()) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.fault  # minutes: a node drains
def test_a_drained_node_leaves_a_checkpoint_from_which_the_others_go_on(
    head: Any, spot: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """SIGTERM, as a spot node's pod gets it;
    without the notice nothing would be saved before the last epoch.
    """
    from sat_ray.integrations.ray.train import train_all

    task, records = (
        task_in(tmp_path / "data", epochs=EPOCHS, validate_every=EPOCHS),
        Records(Storage(str(tmp_path / "sweep"))),
    )
    told, left = list[float](), list[TrainingState]()

    def take_the_node_away() -> None:
        while not any((tmp_path / "sweep").glob("state/progress/*.json")):  # the training has begun
            time.sleep(0.1)
        time.sleep(12.0)
        assert StateFiles(records.storage, task.key).read() is None
        told.append(time.time())
        spot.terminate()
        spot.wait(timeout=2 * DRAIN_SECONDS)
        state = StateFiles(records.storage, task.key).read()
        if state is not None:
            left.append(state)

    thread = threading.Thread(target=take_the_node_away)
    thread.start()
    train_all([task], records, ResourceSettings(train_workers=2, fewest_train_workers=1))
    thread.join()
    record = records.find(TRAIN, task.key)
    assert record is not None and told and record.created > told[0], (
        "the training ended before the node was told to go"
    )
    assert left, "no checkpoint was there when the node had gone"
    state = left[0]
    assert 0 < state.epoch < EPOCHS
    assert (
        record.payload["history"][: state.epoch] == state.history
    )  # with its times: it went on, it did not start again
    alone = train_and_commit(task, Records(Storage(str(tmp_path / "alone"))))
    places = ((records.storage, record), (Storage(str(tmp_path / "alone")), alone))
    ours, theirs = (
        load_model(storage.located(one.payload["path"])).state_dict() for storage, one in places
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.fault  # a node drains
def test_a_process_knows_when_its_own_node_drains_and_only_then(
    head: Any, spot: subprocess.Popen[bytes]
) -> None:
    """What a search trial asks, which is no training of Ray Train's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=1)
    class Trial:
        def leaves(self) -> bool:
            from sat_ray.integrations.ray.nodes import this_node_leaves

            return this_node_leaves()

    home = ray.get_runtime_context().get_node_id()
    nodes = sorted((node["NodeID"] for node in ray.nodes()), key=lambda name: name == home)
    there, here = (
        Trial.options(scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote()
        for name in nodes
    )  # type: ignore[attr-defined]
    assert ray.get([there.leaves.remote(), here.leaves.remote()]) == [False, False]
    spot.terminate()
    deadline = time.monotonic() + DRAIN_SECONDS / 2
    while not ray.get(there.leaves.remote()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.get([there.leaves.remote(), here.leaves.remote()]) == [True, False]
