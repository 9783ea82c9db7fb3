"""Evaluate one shard or make one card, from its inputs to its committed record."""

import functools
import io
from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from sat_ray.data.class_names import relabelled
from sat_ray.data.shards.reading import read_rows
from sat_ray.data.split import Split
from sat_ray.evaluation.card import robustness_card, silent
from sat_ray.evaluation.corruptions.accuracy import corruption_counts
from sat_ray.evaluation.external.loading import load_source
from sat_ray.evaluation.external.validation import naming_model
from sat_ray.evaluation.low_precision.calibration import Calibration, control_rows
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import calibrate_attacks, counted_robust_ids, evaluate
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.inputs import accelerator_of, device_of, split_of
from sat_ray.sweep.records.merge_outcomes import read_part
from sat_ray.sweep.records.store import Record, Records, attempt_name, require_environment
from sat_ray.sweep.resources.gpu_sharing import memory_needed
from sat_ray.sweep.tasks import CARD, CORRUPTIONS, CardTask, EvaluationTask
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.parallel.worker_load import WorkerLoad
from sat_ray.utils.precision import exact_float32
from sat_ray.utils.randomness import Randomness, random_order
from sat_ray.utils.serialization import sha256

_CALIBRATIONS: dict[str, dict[str, Calibration]] = {}


@functools.lru_cache(maxsize=2)
def cached_model(
    uri: str, digest: str, accelerator: str, kind: str = "checkpoint", weights: str = ""
) -> nn.Module:
    """Load a model once per process; kind, weights: see `sat_ray.evaluation.external.loading`.

    digest: what its contents must hash to.
    """
    model, _ = load_source(kind, uri, digest, device=device_of(accelerator), weights=weights)
    return model


def located(task: EvaluationTask, storage: Storage) -> EvaluationTask:
    """Return a task whose checkpoint is an absolute path or URI.

    In the tasks of a sweep it is relative to the storage.
    """
    if task.kind == "function":
        return task
    return replace(task, checkpoint=storage.located(task.checkpoint))


def model_of(task: EvaluationTask) -> nn.Module:
    """Return the model that a task attacks, on this process's device."""
    accelerator = accelerator_of(task)
    return cached_model(
        task.checkpoint, task.checkpoint_sha256, accelerator, task.kind, task.weights
    )


def rows_of(task: EvaluationTask) -> Tensor:
    """Return the rows of the split that a task attacks, ascending."""
    count = task.dataset.manifest["splits"][task.split]
    if task.shuffled:
        return shuffled_rows(count, task.first, task.last, seed=task.seed)
    if task.sample is None:
        return torch.arange(task.first, task.last)
    return sampled_rows(count, task.sample, seed=task.seed)[task.first : task.last]


def images_of(task: EvaluationTask, rows: Tensor) -> Split:
    """Read rows of the split that a task attacks, labelled with the model's classes."""
    found = read_rows(Storage.at(task.dataset.uri), task.split, rows)
    return relabelled(found, task.label_order)


def sampled_rows(count: int, sample: int, *, seed: int) -> Tensor:
    """Return `sample` of `count` rows, drawn by the seed, ascending.

    The first rows of an image folder are no sample, because it is sorted by class.
    """
    return shuffled_rows(count, 0, sample, seed=seed)


def shuffled_rows(count: int, first: int, last: int, *, seed: int) -> Tensor:
    """Return rows first to last of a random order of `count` rows drawn by the seed, ascending.

    The first rows of that order are those of `sampled_rows`.
    """
    order = random_order(Randomness.of(seed, torch.arange(count)), purpose="sample")
    return order[first:last].sort().values


def calibrations_of(task: EvaluationTask) -> dict[str, Calibration]:
    """Measure where float32 must verify attacks on a low-precision copy.

    Once per process; all shards of an evaluation have the same calibration.
    """
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
    """Attack one shard and return its record; a committed shard is not attacked again.

    A task that builds on another evaluates and commits that one first, then attacks the images that
    survived. gpus: that the task holds, for its price.
    """
    done = records.find(task.stage, task.key)
    if done is not None:
        return done
    before = None if task.after is None else evaluate_and_commit(task.after, records, gpus=gpus)
    require_environment(task.environment)
    started = perf_counter()
    load = WorkerLoad(device_of(accelerator_of(task)), ProcessGroup())
    task = located(task, records.storage)
    shard = images_of(task, rows_of(task))
    if before is not None:
        shard = shard.with_ids(counted_robust_ids(read_part(before, records)))
    if task.stage == CORRUPTIONS:
        payload = _under_corruptions(task, shard)
    else:
        payload = _under_attacks(task, shard, records)
    if gpus:
        payload["gpus"] = gpus
    payload |= load.metrics()
    seconds = perf_counter() - started
    return records.commit(
        task.stage, task.key, inputs=task.inputs, payload=payload, seconds=seconds
    )


def _under_attacks(task: EvaluationTask, shard: Split, records: Records) -> dict[str, Any]:
    """Write the outcomes of a shard and return the payload of its record."""
    table, calibrations = _attacked(task, shard)
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
    }
    if calibrations:
        payload["calibrations"] = [found.to_json() for found in calibrations.values()]
    if needed := memory_needed(device_of(accelerator_of(task))):
        payload["gpu_memory"] = needed
    return payload


def _under_corruptions(task: EvaluationTask, shard: Split) -> dict[str, Any]:
    """Return the payload of a shard under common corruptions."""
    device = device_of(accelerator_of(task))
    with exact_float32():
        counts = corruption_counts(
            model_of(task), shard, seed=task.seed, slots=task.slots, device=device
        )
    return {"name": task.name, "n": len(shard), "passes": 0, "correct": counts}


def _attacked(task: EvaluationTask, shard: Split) -> tuple[pa.Table, dict[str, Calibration]]:
    """Return the outcomes of a shard, and the calibrations of the attacks."""
    model = model_of(task)
    with nullcontext() if task.kind == "checkpoint" else naming_model(task.checkpoint):
        calibrations = calibrations_of(task) if len(shard) else {}
        table = evaluate(
            model,
            shard.images,
            shard.labels,
            shard.image_ids,
            attacks=task.attacks,
            seed=task.seed,
            slots=task.slots,
            cascade=task.cascade,
            calibrations=calibrations,
        )
    return table, calibrations


def card_and_commit(task: CardTask, records: Records, *, gpus: float = 0) -> Record:
    """Make a robustness card and return its record.

    A card already committed is not made again. gpus: that it holds, for its price.
    """
    done = records.find(CARD, task.key)
    if done is not None:
        return done
    require_environment(task.environment)
    started = perf_counter()
    load = WorkerLoad(device_of(accelerator_of(task)), ProcessGroup())
    checkpoint = records.storage.located(task.checkpoint)
    model = cached_model(checkpoint, task.checkpoint_sha256, accelerator_of(task))
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
        **load.metrics(),
    }
    return records.commit(
        CARD, task.key, inputs=task.inputs, payload=payload, seconds=perf_counter() - started
    )


def parquet_bytes(table: pa.Table) -> bytes:
    """Spell a table as Parquet, the same bytes for the same rows."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
