"""One unit of work from its inputs to its committed record; knows nothing of how many are run, or where."""

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from sat_ray.checkpoint import save_model
from sat_ray.data.class_names import relabelled
from sat_ray.data.loading import Loader, Resident, Streamed, shard_rows, streams
from sat_ray.data.shards.dataset import read_rows, read_split
from sat_ray.data.split import Split
from sat_ray.evaluation.card import robustness_card, silent
from sat_ray.evaluation.external.loading import load_source
from sat_ray.evaluation.external.validation import naming_model
from sat_ray.evaluation.low_precision.calibration import Calibration, control_rows
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import calibrate_attacks, counted_robust_ids, evaluate
from sat_ray.models import model_from_spec
from sat_ray.storage.store import Storage
from sat_ray.sweep.gpu_sharing import memory_needed
from sat_ray.sweep.records.merge_outcomes import read_part
from sat_ray.sweep.records.store import STATE, Record, Records, attempt_name, require_environment
from sat_ray.sweep.tasks import CARD, SEARCH, CardTask, EvaluationTask, TrainingTask
from sat_ray.training.epoch_metrics import NonFiniteLossError
from sat_ray.training.loop import EpochReport, RunOptions, TrainingState, fit
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.checkpointing import StateFiles, pack_state, unpack_state
from sat_ray.utils.randomness import Randomness, sample_rows
from sat_ray.utils.serialization import sha256

_CALIBRATIONS: dict[str, dict[str, Calibration]] = {}
CHECKPOINT_IMAGES = 100_000  # trained on between two checkpoints inside an epoch: minutes on an accelerator, never on digits


@functools.lru_cache(maxsize=4)
def split_of(uri: str, split: str, content: str) -> Split:
    """Load a split once per process. content: hash of the manifest, so that other data is another entry."""
    return read_split(Storage.at(uri), split)


def training_images(task: TrainingTask) -> Loader:
    """Return the images that a task trains on, in memory or streamed from their shards."""
    manifest = task.dataset.manifest
    if streams(manifest, task.loading):
        threads, pin = torch.get_num_threads(), bool(_accelerator(task))
        return Streamed(Storage.at(task.dataset.uri), "train", threads=threads, pin=pin)
    return Resident(
        split_of(task.dataset.uri, "train", task.dataset.hash), shard_rows(manifest, "train")
    )


def device_of(accelerator: str) -> torch.device:
    """Return the device a task runs on: this process's GPU where the sweep asked for one."""
    return torch.device("cuda", torch.cuda.current_device()) if accelerator else torch.device("cpu")


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

    previous: record of the same training up to an earlier epoch, to go on from. A task already committed is not trained again; one that
    was interrupted goes on from its last checkpoint: that of its last validation, of the last `checkpoint_images` images, or of a node
    that `leaving` announced to go (see `fit`).
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
        try:
            for report in reports:
                state = report.state
                if "val/robust_accuracy" in report.metrics and report.epoch + 1 < task.until:
                    write(state)
                on_epoch(report)
        except NonFiniteLossError as error:
            files.wait()
            error.args = (
                f"{error}; {f'the last checkpoint is {files.last}' if files.last else 'there is no checkpoint yet'}",
            )
            raise
        if process_group.rank == 0:
            files.wait()
            _commit_training(task, records, state, workers=process_group.size)
            files.discard()
            records.end(task.key)
    process_group.barrier()
    committed = records.find(task.stage, task.key)
    assert committed is not None
    return committed


def _accelerator(task: TrainingTask | EvaluationTask | CardTask) -> str:
    device = str(task.environment["device"])
    return device.partition(":")[2] if device.startswith("cuda") else ""


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
    return fit(
        model_from_spec(task.model, seed=task.seed).to(device_of(_accelerator(task))),
        training_images(task),
        split_of(task.dataset.uri, "val", task.dataset.hash),
        settings=task.training,
        threat_model=task.threat_model,
        attacker_activation=None if own else task.configuration.attacker_activation,
        attacker_alpha=None if own else task.configuration.attacker_alpha,
        seed=task.seed,
        state=state,
        options=RunOptions(
            process_group=process_group,
            until=task.until,
            slots=task.slots,
            checkpoint_every=max(1, checkpoint_images // task.training.global_batch_size),
            on_checkpoint=on_checkpoint,
            preemption_announced=leaving,
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
        "accelerator_seconds": state.seconds * workers,
        "train_images_per_second": sum(row["throughput/images_per_second"] for row in state.history)
        / len(state.history),
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
    """Remove the states that the trials of a search could go on from; for a search that will train no more. The best weights stay."""
    for record in records.each(SEARCH):
        if path := record.payload.get("state"):
            records.storage.discard(path)


@functools.lru_cache(maxsize=2)
def cached_model(uri: str, digest: str, accelerator: str, kind: str = "checkpoint") -> nn.Module:
    """Load a model once per process; kind: see `sat_ray.evaluation.external.loading`; digest: what its contents must hash to."""
    model, _ = load_source(kind, uri, digest, device=device_of(accelerator))
    return model


def located(task: EvaluationTask, storage: Storage) -> EvaluationTask:
    """Return a task whose checkpoint is an absolute path or URI; in the tasks of a sweep it is relative to the storage."""
    return (
        task
        if task.kind == "function"
        else replace(task, checkpoint=storage.located(task.checkpoint))
    )


def model_of(task: EvaluationTask) -> nn.Module:
    """Return the model that a task attacks, on this process's device."""
    return cached_model(task.checkpoint, task.checkpoint_sha256, _accelerator(task), task.kind)


def rows_of(task: EvaluationTask) -> Tensor:
    """Return the rows of the split that a task attacks, ascending."""
    if task.sample is None:
        return torch.arange(task.first, task.last)
    return sampled_rows(task.dataset.manifest["splits"][task.split], task.sample, seed=task.seed)[
        task.first : task.last
    ]


def images_of(task: EvaluationTask, rows: Tensor) -> Split:
    """Read rows of the split that a task attacks, labelled with the model's classes."""
    found = read_rows(Storage.at(task.dataset.uri), task.split, rows)
    return relabelled(found, task.label_order)


def sampled_rows(count: int, sample: int, *, seed: int) -> Tensor:
    """Return `sample` of `count` rows, drawn by the seed, ascending (an image folder is sorted by class: its first rows are no sample)."""
    return sample_rows(Randomness.of(seed, torch.arange(count)), sample, purpose="sample")


def calibrations_of(task: EvaluationTask) -> dict[str, Calibration]:
    """Measure where float32 must look again in attacks on a fast copy: once per process, the same for every shard of an evaluation."""
    if all(spec.gradient == "float32" for spec in task.attacks):
        return {}
    evaluation = replace(task, first=0, last=0, after=None).key
    if evaluation not in _CALIBRATIONS:
        count = task.dataset.manifest["splits"][task.split]
        control = images_of(task, control_rows(count, seed=task.seed))
        _CALIBRATIONS[evaluation] = calibrate_attacks(
            model_of(task), control, attacks=task.attacks, seed=task.seed, slots=task.slots
        )
    return _CALIBRATIONS[evaluation]


def evaluate_and_commit(task: EvaluationTask, records: Records, *, gpus: float = 0) -> Record:
    """Attack one shard and return its record; a shard already committed is not attacked again. gpus: that it holds, for its price.

    A task that builds on another evaluates that one first and commits it, then attacks the images that survived.
    """
    done = records.find(task.stage, task.key)
    if done is not None:
        return done
    before = None if task.after is None else evaluate_and_commit(task.after, records, gpus=gpus)
    require_environment(task.environment)
    started = perf_counter()
    task = located(task, records.storage)
    model = model_of(task)
    shard = images_of(task, rows_of(task))
    if before is not None:
        alive = torch.tensor(
            sorted(counted_robust_ids(read_part(before, records))), dtype=torch.int64
        )
        shard = shard.take(torch.isin(shard.image_ids, alive))
    settings: dict[str, Any] = {
        "attacks": task.attacks,
        "seed": task.seed,
        "slots": task.slots,
        "cascade": task.cascade,
    }
    with nullcontext() if task.kind == "checkpoint" else naming_model(task.checkpoint):
        calibrations = calibrations_of(task) if len(shard) else {}
        table = evaluate(
            model,
            shard.images,
            shard.labels,
            shard.image_ids,
            calibrations=calibrations,
            **settings,
        )
    data = parquet_bytes(table)
    path = f"state/parts/{task.key}-{attempt_name()}.parquet"
    records.storage.write(path, data)
    payload = {
        "name": task.name,
        "path": path,
        "sha256": sha256(data),
        "n": len(shard),
        "clean_correct": len(clean_correct_ids(table)),
        "robust": len(robust_image_ids(table)),
        "passes": sum(table["passes"].to_pylist()),
        **(
            {"calibrations": [found.to_json() for found in calibrations.values()]}
            if calibrations
            else {}
        ),
        **({"gpus": gpus} if gpus else {}),
        **(
            {"gpu_memory": needed}
            if (needed := memory_needed(device_of(_accelerator(task))))
            else {}
        ),
    }
    return records.commit(
        task.stage, task.key, inputs=task.inputs, payload=payload, seconds=perf_counter() - started
    )


def card_and_commit(task: CardTask, records: Records, *, gpus: float = 0) -> Record:
    """Make a robustness card and return its record; a card already committed is not made again. gpus: that it holds, for its price."""
    done = records.find(CARD, task.key)
    if done is not None:
        return done
    require_environment(task.environment)
    started = perf_counter()
    checkpoint = records.storage.located(task.checkpoint)
    model = cached_model(checkpoint, task.checkpoint_sha256, _accelerator(task))
    split = split_of(task.dataset.uri, "val", task.dataset.hash)
    settings: dict[str, Any] = {
        "attack": task.attack,
        "settings": task.settings,
        "variants": task.variants,
    }
    card = robustness_card(
        model, split, **settings, seed=task.seed, slots=task.slots, on_progress=silent
    )
    payload = {
        "name": task.name,
        "weights": task.checkpoint_sha256,
        "split": "val",
        "card": card,
        **({"gpus": gpus} if gpus else {}),
    }
    return records.commit(
        CARD, task.key, inputs=task.inputs, payload=payload, seconds=perf_counter() - started
    )


def parquet_bytes(table: pa.Table) -> bytes:
    """Spell a table as Parquet, the same bytes for the same rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
