"""Training goes on from any step as if nothing had happened,
and stops where its numbers have gone bad.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from repository import paths_of_tests
from sweeps import digits_shards
from trainings import BALL, assert_same_bits, digits_again, kept_states, small_model, train
from waiting import until

from sat_ray.data.split import Split
from sat_ray.integrations.command_line.checks.code_changes import settle_code_changes
from sat_ray.report.console import Reporter
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ModelSettings, SweepConfig
from sat_ray.sweep.execute.training import steps_between_checkpoints, train_and_commit
from sat_ray.sweep.plan.trainings import final_tasks
from sat_ray.sweep.records.store import Record, Records, changed_modules
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN, TrainingTask
from sat_ray.training.epoch_metrics import NonFiniteLossError
from sat_ray.training.loop import TrainingSettings, TrainingState
from sat_ray.training.resume.checkpointing import StateFiles, pack_state, unpack_state
from sat_ray.training.train_step import TrainStep
from sat_ray.utils.randomness import permutation

EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "validate_every": 2,
    "warmup_epochs": 1.0,
    "ema_decay": 0.9,
    "gradient_clip": 1.0,
    "epsilon_warmup": 0.5,
    "guard_every": 3,
    "guard_images": 32,
}
"""Whatever has a state of its own, or changes on the way."""
ADAMW: dict[str, Any] = {
    "optimizer": "adamw",
    "learning_rate": 0.005,
    "schedule": "cosine",
    "layer_decay": 0.8,
    "label_smoothing": 0.1,
    "attack_label_smoothing": 0.1,
}


def states_of(
    digits: Split, activation: str, **changes: Any
) -> tuple[list[TrainingState], TrainingState]:
    """Return the states after every step, each from its file, and the last state of all."""
    seen, every = kept_states()
    settings = EVERYTHING | changes | every
    return seen, train(small_model(activation), digits, **settings)[-1].state


@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        ("silu", {}),
        ("parametric_softplus", {"alpha_start": 0.5}),
        ("smoothrelu_learned", ADAMW | {"objective": "mart", "awp_gamma": 0.01, "awp_start": 0.4}),
        ("silu", {"layer_decay": 0.8, "objective": "trades", "awp_gamma": 0.01}),
        ("gelu", {"attack_replays": 2, "guard_every": 0}),
    ],
    ids=["SGD", "moving alpha", "AdamW, MART, AWP", "SGD by layers, TRADES, AWP", "Free"],
)
def test_a_run_resumed_after_any_step_is_the_undisturbed_run_bit_for_bit(
    digits: Split, activation: str, changes: dict[str, Any]
) -> None:
    """Four steps an epoch: the first, one in the middle, the last of an epoch (before its
    validation), the very last.
    """
    seen, undisturbed = states_of(digits, activation, **changes)
    assert [(state.epoch, state.step) for state in seen] == [
        (epoch, step) for epoch in range(3) for step in range(1, 5)
    ]
    for at in (0, 5, 7, 11) if not changes else (5,):
        other = small_model(activation)
        torch.nn.init.zeros_(other.body.conv1.weight)  # whatever the model held, the state decides
        resumed = train(other, digits, **EVERYTHING | changes, state=seen[at])
        assert [report.epoch for report in resumed] == list(range(at // 4, 3))
        assert_same_bits(resumed[-1].state, undisturbed)
        again = dataclasses.replace(seen[at], seconds=0.0)
        assert pack_state(again) == pack_state(unpack_state(pack_state(again)))


def packed_by_an_earlier_version(state: TrainingState) -> bytes:
    """Write a state as it was written when momentum was all that an optimizer could hold."""
    packed = pack_state(state)
    length = int.from_bytes(packed[:8], "little")
    header = json.loads(json.loads(packed[8 : 8 + length])["__metadata__"]["header"])
    tensors = {
        name.replace("optimizer/momentum_buffer/", "momentum/"): tensor
        for name, tensor in safetensors.torch.load(packed).items()
    }
    digest = hashlib.sha256(header["state"].encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    text = json.dumps({"sha256": digest.hexdigest(), "state": header["state"]})
    return bytes(safetensors.torch.save(tensors, metadata={"header": text}))


def test_a_training_goes_on_from_the_file_of_a_version_that_named_the_momentum_alone(
    digits: Split,
) -> None:
    seen, undisturbed = states_of(digits, "silu", momentum=0.8)
    old = packed_by_an_earlier_version(seen[9])
    assert b"optimizer/" not in old and b'"good/momentum/' in old
    state = unpack_state(old)
    assert_same_bits(state, seen[9])
    resumed = train(small_model(), digits, **EVERYTHING, momentum=0.8, state=state)
    assert_same_bits(resumed[-1].state, undisturbed)


def train_and_leave_checkpoints(folder: str) -> None:
    """Run as a process of its own: train for ever so long,
    leaving a checkpoint after every step.
    """
    torch.set_num_threads(1)
    storage = Storage.at(folder)

    def leave(state: TrainingState) -> None:
        storage.write("state.safetensors", pack_state(state))
        time.sleep(0.02)  # so that there is time to be killed

    train(
        small_model(),
        digits_again(),
        **EVERYTHING | {"epochs": 40},
        checkpoint_every=1,
        on_checkpoint=leave,
    )


def test_training_killed_at_a_random_step_and_resumed_is_the_run_left_alone_bit_for_bit(
    digits: Split, tmp_path: Path
) -> None:
    """SIGKILL whenever the clock says so;
    both runs then stop six epochs after the one that was under way.
    """
    code = f"import {__name__} as t; "
    with subprocess.Popen(
        [sys.executable, "-c", code + f"t.train_and_leave_checkpoints({str(tmp_path)!r})"],
        env=os.environ | {"PYTHONPATH": paths_of_tests()},
    ) as process:
        storage = Storage.at(tmp_path)
        until(lambda: storage.exists("state.safetensors"), what="the first checkpoint")
        time.sleep(time.time() % 0.5)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    state = unpack_state(storage.read("state.safetensors"))
    changes = EVERYTHING | {"epochs": 40}
    resumed = train(small_model(), digits, **changes, state=state, until=state.epoch + 2)[-1].state
    assert resumed.epoch >= 2
    assert_same_bits(
        resumed, train(small_model(), digits, **changes, until=resumed.epoch)[-1].state
    )


def test_a_nan_loss_stops_the_run_and_names_step_images_and_last_good_state(digits: Split) -> None:
    """With so large a rate the first update destroys the weights,
    and the second batch is the first to show it.
    """
    with pytest.raises(FloatingPointError) as caught:
        train(small_model(), digits, learning_rate=1e30, seed=7)
    error = caught.value
    assert isinstance(error, NonFiniteLossError)
    ids = permutation(128, seed=7, epoch=0)[32:64].tolist()
    shown = ", ".join(map(str, ids[:8]))
    assert str(error) == (
        "training loss or weights became NaN or infinite in epoch 0, step 1 (seed 7), on the 32 "
        f"images with ids {shown}, ...; "
        "try a smaller training.learning_rate; the last good state is of epoch 0, step 0"
    )
    assert error.step == 1 and list(error.image_ids) == ids
    carried = pickle.loads(pickle.dumps(error))  # as Ray carries it from a worker to the driver
    assert (str(carried), carried.step, carried.image_ids) == (str(error), 1, error.image_ids)


def test_a_checkpoint_never_holds_weights_whose_loss_was_nan(digits: Split) -> None:
    seen: list[int] = []
    with pytest.raises(
        NonFiniteLossError, match=r"step 1 \(seed 0\).* the last good state is of epoch 0, step 1$"
    ):
        train(
            small_model(),
            digits,
            learning_rate=1e30,
            checkpoint_every=1,
            on_checkpoint=lambda state: seen.append(state.step),
        )
    assert seen == [1]


def test_weights_destroyed_by_the_last_update_are_noticed_before_they_are_validated_or_saved(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss of this run is finite."""
    update = TrainStep.update

    def destroying(self: TrainStep, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        if kwargs["number"] == 7:
            self.model.get_parameter("body.fc.bias").data[3] = float("inf")

    monkeypatch.setattr(TrainStep, "update", destroying)
    with pytest.raises(
        NonFiniteLossError,
        match=r"in epoch 1, step 3 .* the last good state is of epoch 1, step 0$",
    ):
        train(small_model(), digits)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TrainingTask:
    """Return a training of the digits."""
    dataset = digits_shards(tmp_path_factory.mktemp("data"), rows=2000)
    training = TrainingSettings(
        epochs=1,
        global_batch_size=64,
        batchnorm_group_size=32,
        warmup_epochs=0.5,
        validation_steps=4,
    )
    config = SweepConfig(
        recipe="toy", threat_model=BALL, model=ModelSettings(width=8), training=training
    )
    return final_tasks(config, dataset, [SearchPoint(activation="silu")])[0]


@pytest.fixture(scope="module")
def undisturbed(task: TrainingTask, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return the record of that training when nothing interrupts it."""
    return train_and_commit(task, Records(Storage.at(tmp_path_factory.mktemp("undisturbed"))))


def interrupted(
    task: TrainingTask,
    records: Records,
    patch: pytest.MonkeyPatch,
    *,
    checkpoint_images: int = 200,
    at: int = 8,
) -> list[int]:
    """Train until an update, by default one with some states written, and stop there. Return the
    numbers of the updates, to which those of later trainings are added.
    """
    update, numbers = TrainStep.update, list[int]()

    def counted(self: TrainStep, *args: Any, **kwargs: Any) -> None:
        numbers.append(kwargs["number"])
        if len(numbers) == at:
            raise KeyboardInterrupt
        update(self, *args, **kwargs)

    patch.setattr(TrainStep, "update", counted)
    with pytest.raises(KeyboardInterrupt):
        train_and_commit(task, records, checkpoint_images=checkpoint_images)
    return numbers


def test_a_task_interrupted_inside_an_epoch_goes_on_from_its_checkpoint(
    task: TrainingTask, undisturbed: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(Storage.at(tmp_path / "sweep"))
    numbers = interrupted(task, records, monkeypatch, checkpoint_images=300)
    resumed = train_and_commit(task, records, checkpoint_images=300)
    assert numbers[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 4]  # 300 images are four steps
    assert (
        resumed.payload["sha256"] == undisturbed.payload["sha256"]
        and resumed.content == undisturbed.content
    )
    assert records.storage.names("state/progress") == []


def test_the_time_between_checkpoints_does_not_depend_on_the_number_of_workers() -> None:
    alone = steps_between_checkpoints(1024, workers=1)
    assert alone == 97  # 100,000 images
    # the same global batch: 64 workers take a 64th of the time for a step
    assert steps_between_checkpoints(1024, workers=64) == pytest.approx(64 * alone, rel=0.01)
    assert steps_between_checkpoints(8192, workers=64) == 781
    assert steps_between_checkpoints(200_000, workers=1) == 1


def test_a_training_that_other_code_began_is_refused_or_goes_on_or_begins_anew_as_asked(
    task: TrainingTask, undisturbed: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(Storage.at(tmp_path / "sweep"))
    interrupted(task, records, monkeypatch)
    (begun,) = records.begun()
    assert changed_modules(begun, TRAIN) == []
    path = f"state/progress/{task.key}.json"
    records.storage.write_json(
        path,
        sealed(
            records.storage.read_json(path) | {"code": begun.code | {"sat_ray.training": "older"}}
        ),
    )

    def settle(choice: str) -> None:
        settle_code_changes(
            records, ((TRAIN, one) for one in records.begun()), choice=choice, reporter=Reporter()
        )

    with pytest.raises(
        ValueError, match=r"1 results in .* were made by other code \(sat_ray\.training changed\)"
    ):
        settle("refuse")
    settle("reuse")
    assert len(records.storage.names("state/progress")) == 2
    settle("rerun")
    assert (
        records.storage.names("state/progress")
        == records.storage.names("state/progress/second")
        == []
    )
    assert len(list((tmp_path / "sweep" / "superseded").rglob("*.safetensors"))) == 2
    anew = train_and_commit(task, records, checkpoint_images=200)
    assert list(records.begun()) == []
    assert anew.content == undisturbed.content


class HeldStorage(Storage):
    """A storage whose writes of training states wait until they may go on, or fail."""

    gate = threading.Event()
    fails = False

    def write(self, path: str, data: bytes) -> None:
        """Write as any storage does, later."""
        self.gate.wait(60)
        if self.fails:
            raise OSError(f"no space for {path}")
        super().write(path, data)


def test_a_state_is_written_beside_the_training_as_it_was_and_one_at_a_time(tmp_path: Path) -> None:
    storage, state = (
        HeldStorage(str(tmp_path)),
        TrainingState(epoch=1, weights={"w": torch.ones(3)}, history=[{"epoch": 0.0}]),
    )
    with StateFiles(storage, "key") as files:
        files.write(state)  # returns although nothing can be written
        assert files.last is None
        state.epoch, state.weights = 2, {"w": torch.zeros(3)}
        state.history.append({"epoch": 1.0})
        threading.Timer(0.3, storage.gate.set).start()
        files.write(state)
        first = unpack_state(
            storage.read(files.paths[0])
        )  # in its place before the second begins, and what it was
        assert (first.epoch, first.weights["w"].tolist(), first.history) == (
            1,
            [1.0, 1.0, 1.0],
            [{"epoch": 0.0}],
        )
    assert {path: unpack_state(storage.read(path)).epoch for path in files.paths} == dict(
        zip(files.paths, (1, 2), strict=True)
    )
    with StateFiles(storage, "key") as again:
        found = again.read()
        assert found is not None and found.epoch == 2 and again.last == storage.full(files.paths[1])
        again.write(TrainingState(epoch=3))
        again.wait()
        assert again.last == storage.full(files.paths[0])  # over the older one
        again.discard()
    assert storage.names("state/progress") == storage.names("state/progress/second") == []


def test_what_keeps_a_state_from_being_written_is_raised_at_the_next_or_at_the_end(
    tmp_path: Path,
) -> None:
    storage = HeldStorage(str(tmp_path))
    storage.gate.set()
    object.__setattr__(storage, "fails", True)
    with StateFiles(storage, "key") as files:
        files.write(TrainingState())
        with pytest.raises(OSError, match=r"no space for state/progress/key\.safetensors"):
            files.write(TrainingState())
        files.write(TrainingState())
        with pytest.raises(OSError, match="no space"):
            files.wait()
        files.wait()


def damage(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_state_is_named_and_training_goes_on_from_the_one_before_with_the_same_result(
    task: TrainingTask,
    undisturbed: Record,
    damaged: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = Records(Storage.at(tmp_path / "sweep"))
    numbers = interrupted(task, records, monkeypatch, at=10)  # after three, six and nine steps
    last = [tmp_path / "sweep" / path for path in StateFiles(records.storage, task.key).paths]
    for path in last[:damaged]:
        damage(path)
    resumed = train_and_commit(task, records, checkpoint_images=200)
    assert numbers[9:11] == [9, 6 if damaged == 1 else 0]
    named = [
        record.getMessage()
        for record in caplog.records
        if record.name == "sat_ray.training.resume.checkpointing"
    ]
    assert [
        path in message for path, message in zip(map(str, last[:damaged]), named, strict=True)
    ] == [True] * damaged
    assert "does not match its sha256" in named[0] and "\n" not in named[0]
    assert resumed.content == undisturbed.content


def test_a_damaged_state_of_an_earlier_rung_stops_a_task_with_one_line_that_says_what_to_do(
    task: TrainingTask, tmp_path: Path
) -> None:
    records = Records(Storage.at(tmp_path / "sweep"))
    longer = dataclasses.replace(
        task, training=dataclasses.replace(task.training, epochs=2), until=2
    )
    first = train_and_commit(longer.at(1), records)
    damage(tmp_path / "sweep" / first.payload["state"])
    with pytest.raises(
        ValueError,
        match=r"state\.safetensors: .*sha256.*; move .*/state/train/\w+\.json away and run again$",
    ) as caught:
        train_and_commit(longer, records, previous=first)
    assert "\n" not in str(caught.value)


def test_a_task_whose_loss_is_nan_names_its_last_checkpoint(
    task: TrainingTask, tmp_path: Path
) -> None:
    bad = dataclasses.replace(
        task, training=dataclasses.replace(task.training, learning_rate=1e30, warmup_epochs=0.0)
    )
    records = Records(Storage.at(tmp_path / "sweep"))
    with pytest.raises(
        NonFiniteLossError,
        match=r"epoch 0, step 1; the last checkpoint is .*/state/progress/\w+\.safetensors$",
    ):
        train_and_commit(bad, records, checkpoint_images=64)
    with pytest.raises(NonFiniteLossError, match=r"epoch 0, step 0; there is no checkpoint yet$"):
        train_and_commit(bad, Records(Storage.at(tmp_path / "other")))
