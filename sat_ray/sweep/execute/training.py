"""Train one task, from its inputs to its committed record."""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sat_ray.checkpoint import save_model
from sat_ray.data.class_names import extra_labels
from sat_ray.data.extra import Extra
from sat_ray.data.loading import Loader, Resident, Streamed, shard_rows, streams
from sat_ray.models import model_from_spec
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.initial_weights import start_from
from sat_ray.sweep.execute.inputs import accelerator_of, device_of, split_of
from sat_ray.sweep.records.store import STATE, Record, Records, attempt_name, require_environment
from sat_ray.sweep.tasks import SEARCH, Dataset, TrainingTask
from sat_ray.training.epoch_metrics import NonFiniteLossError
from sat_ray.training.loop import EpochReport, RunOptions, TrainingState, fit
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.checkpointing import StateFiles, pack_state, unpack_state

# Images of one worker between two checkpoints inside an epoch: half a minute of a large network on
# an accelerator, never on digits.
CHECKPOINT_IMAGES = 100_000


def steps_between_checkpoints(
    global_batch_size: int, *, workers: int, images: int = CHECKPOINT_IMAGES
) -> int:
    """Return the steps after which a state is written inside an epoch, at least 1.

    images: of one worker, so that the time between two states, which a kill would lose, does not
    depend on how many workers there are.
    """
    return max(1, images * workers // global_batch_size)


def training_images(task: TrainingTask, dataset: Dataset) -> Loader:
    """Return the train split of a task's dataset, in memory or streamed from its shards."""
    manifest = dataset.manifest
    if streams(manifest, task.loading):
        threads, pin = torch.get_num_threads(), bool(accelerator_of(task))
        return Streamed(Storage.at(dataset.uri), "train", threads=threads, pin=pin)
    return Resident(split_of(dataset.uri, "train", dataset.hash), shard_rows(manifest, "train"))


def extra_of(task: TrainingTask) -> Extra | None:
    """Return the extra images of a task, None where it has none."""
    extra = task.dataset.extra
    if extra is None:
        return None
    order = extra_labels(task.dataset.manifest, extra.manifest)
    return Extra(training_images(task, extra), task.extra_share, order)


def train_and_commit(
    task: TrainingTask,
    records: Records,
    *,
    process_group: ProcessGroup | None = None,
    previous: Record | None = None,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    checkpoint_images: int = CHECKPOINT_IMAGES,
    leaving: Callable[[], bool] | None = None,
) -> Record:
    """Train a task and return its record; every process of the group calls it, rank 0 writes.

    previous: record of the same training up to an earlier epoch, to go on from. A task already
    committed is not trained again; one that was interrupted goes on from its last checkpoint: that
    of its last validation, of the last `checkpoint_images` images of each worker, or of a node that
    `leaving` announced to go (see `fit`).
    """
    process_group = process_group or ProcessGroup()
    done = records.find(task.stage, task.key)
    if done is not None:
        return done
    require_environment(task.environment)
    with StateFiles(records.storage, task.key) as files:
        state = files.read()
        if state is None:
            state = _starting_state(records, previous)
            if process_group.rank == 0:
                records.begin(task.stage, task.key, inputs=task.inputs)
        write = files.write if process_group.rank == 0 else lambda state: None
        settings: dict[str, Any] = {
            "process_group": process_group,
            "checkpoint_images": checkpoint_images,
            "leaving": leaving,
        }
        reports = _training(task, state, on_checkpoint=write, **settings)
        state = _followed(reports, task, files, write=write, on_epoch=on_epoch, state=state)
        if process_group.rank == 0:
            files.wait()
            _commit_training(task, records, state, workers=process_group.size)
            files.discard()
            records.end(task.key)
    process_group.barrier()
    committed = records.find(task.stage, task.key)
    assert committed is not None
    return committed


def _followed(
    reports: Iterator[EpochReport],
    task: TrainingTask,
    files: StateFiles,
    *,
    state: TrainingState,
    write: Callable[[TrainingState], None],
    on_epoch: Callable[[EpochReport], None],
) -> TrainingState:
    """Train to the end, with a checkpoint after every validation, and return the last state."""
    try:
        for report in reports:
            state = report.state
            if "val/robust_accuracy" in report.metrics and report.epoch + 1 < task.until:
                write(state)
            on_epoch(report)
    except NonFiniteLossError as error:
        files.wait()
        last = f"the last checkpoint is {files.last}"
        error.args = (f"{error}; {last if files.last else 'there is no checkpoint yet'}",)
        raise
    return state


def _training(
    task: TrainingTask,
    state: TrainingState,
    *,
    process_group: ProcessGroup,
    checkpoint_images: int,
    leaving: Callable[[], bool] | None,
    on_checkpoint: Callable[[TrainingState], None],
) -> Iterator[EpochReport]:
    """Return the epochs of a task, from a state on."""
    own = task.configuration.own_attacker
    model = model_from_spec(task.model, seed=task.seed)
    if task.initial_weights is not None and not state.weights:
        start_from(task.initial_weights, model, task.model, seed=task.seed)
    return fit(
        model.to(device_of(accelerator_of(task))),
        training_images(task, task.dataset),
        split_of(task.dataset.uri, "val", task.dataset.hash),
        settings=task.training,
        threat_model=task.threat_model,
        attacker_activation=None if own else task.configuration.attacker_activation,
        attacker_alpha=None if own else task.configuration.attacker_alpha,
        extra=extra_of(task),
        seed=task.seed,
        state=state,
        options=RunOptions(
            process_group=process_group,
            until=task.until,
            slots=task.slots,
            checkpoint_every=steps_between_checkpoints(
                task.training.global_batch_size,
                workers=process_group.size,
                images=checkpoint_images,
            ),
            on_checkpoint=on_checkpoint,
            preemption_announced=leaving,
            measure_start=task.initial_weights is not None,
        ),
    )


def _starting_state(records: Records, previous: Record | None) -> TrainingState:
    if previous is None:
        return TrainingState()
    path = previous.payload["state"]
    try:
        return unpack_state(records.storage.read(path))
    except (FileNotFoundError, ValueError) as error:
        reason = "it is gone" if isinstance(error, FileNotFoundError) else error
        record = records.storage.full(f"{STATE}/{previous.stage}/{previous.key}.json")
        raise ValueError(
            f"{records.storage.full(path)}: {reason}; move {record} away and run again"
        ) from None


def _commit_training(
    task: TrainingTask, records: Records, state: TrainingState, *, workers: int
) -> Record:
    folder = f"checkpoints/{task.stage.name}/{task.name}-{task.key[:8]}-{attempt_name()}"
    about = {
        "configuration": task.configuration.to_json(),
        "seed": task.seed,
        "epoch": state.best_epoch,
    }
    about["class_names"] = task.dataset.manifest["class_names"]
    digest = save_model(records.storage.child(folder), state.best, spec=task.model, about=about)
    payload: dict[str, Any] = {
        "name": task.name,
        "configuration": task.configuration.to_json(),
        "seed": task.seed,
        "until": task.until,
        "path": folder,
        "sha256": digest,
        "best_epoch": state.best_epoch,
        "val_robust_accuracy": state.best_score[0],
        "val_clean_accuracy": state.best_score[1],
        "last_val": [
            state.history[-1]["val/robust_accuracy"],
            state.history[-1]["val/clean_accuracy"],
        ],
        "history": state.history,
        "history_times": state.epoch_ends,
        "accelerator_seconds": state.seconds * workers,
        "train_images_per_second": statistics.fmean(
            row["throughput/images_per_second"]
            for row in state.history
            if "throughput/images_per_second" in row  # not before the first epoch
        ),
    }
    if state.events:
        payload["guard_events"] = state.events
    if task.until < task.training.epochs:
        payload["state"] = f"{folder}/state.safetensors"
        records.storage.write(payload["state"], pack_state(state))
    return records.commit(
        task.stage, task.key, inputs=task.inputs, payload=payload, seconds=state.seconds
    )


def discard_states(records: Records) -> None:
    """Remove the states that the trials of a search could go on from.

    For a search that will train no more. The best weights stay.
    """
    for record in records.each(SEARCH):
        if path := record.payload.get("state"):
            records.storage.discard(path)
