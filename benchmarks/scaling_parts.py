"""Measure the parts of a data-parallel training on this machine, and real trainings of it.

The network is the ResNet-18 of the recipes (11.2 million parameters) on digits of 8 x 8 pixels, one
thread a worker: its gradients are large for its compute, so that the exchange shows.
"""

import itertools
import multiprocessing
import queue
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter, process_time
from typing import Any

import common
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sat_ray.data.loading import Resident, shard_rows
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.split import Split
from sat_ray.models import model_from_spec
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ModelSettings
from sat_ray.sweep.config.resources import Resources, ResourceSettings
from sat_ray.sweep.execute.inputs import split_of
from sat_ray.sweep.plan.trainings import training_task
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN, Dataset, TrainingTask
from sat_ray.training.loop import RunOptions, TrainingState, fit
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.checkpointing import StateFiles
from sat_ray.training.settings import TrainingSettings

GROUPS = 4  # BatchNorm groups of a step, so that one, two and four workers share them evenly
GROUP_SIZE = 16
LOOK_SECONDS = 5.0  # between two looks at processes that measure


class CrowdedResources(ResourceSettings):
    """Half a CPU of Ray for each worker, so that four fit on two cores."""

    def worker(self) -> Resources:
        """Return what one training worker takes."""
        return {"CPU": 0.5}


class Clocked:
    """Images in memory, as a loader that notes when each step begins."""

    def __init__(self, images: Resident) -> None:
        self.images = images
        self.shards = images.shards
        self.begins: list[float] = []

    def ids(self, rows: Tensor) -> Tensor:
        """Return the image ids of rows."""
        return self.images.ids(rows)

    def batches(self, plan: Tensor) -> Iterator[list[Split]]:
        """Take rows out of memory."""
        for groups in self.images.batches(plan):
            self.begins.append(perf_counter())
            yield groups


@dataclass(frozen=True)
class Measured:
    """Seconds of one process. steps: of GROUPS groups; one_group: of steps of one group;
    epoch_end: after the last step of an epoch without validation; validation: what an epoch with
    one takes more.
    """

    steps: list[float]
    one_group: list[float]
    epoch_end: float
    validation: float


def task_in(folder: Path, *, epochs: int, validate_every: int, network: str) -> TrainingTask:
    """Describe a training on digits, which are written into a folder."""
    write_dataset(dataset_source("digits"), Storage(str(folder)), rows_per_shard=512)
    dataset = Dataset.open(str(folder))
    assert dataset is not None
    recipe = RECIPES["digits_smoke"]()
    training = TrainingSettings(
        epochs=epochs,
        global_batch_size=GROUPS * GROUP_SIZE,
        batchnorm_group_size=GROUP_SIZE,
        learning_rate=0.05,
        validate_every=validate_every,
        warmup_epochs=0,
    )
    config = replace(recipe, model=ModelSettings(name=network, stem="small"), training=training)
    point = SearchPoint(activation="silu")
    return training_task(config, dataset, point, stage=TRAIN, seed=0, training=training)


def steps_of(task: TrainingTask, *, groups: int, epochs: int) -> tuple[list[float], list[float]]:
    """Train alone with `groups` groups in a step, and validate after the last epoch.

    Returns the seconds of the steps after the first of all, and for each epoch those from the end
    of its last step to its report.
    """
    uri = task.dataset.uri
    train = split_of(uri, "train", task.dataset.hash)
    clocked = Clocked(Resident(train, shard_rows(task.dataset.manifest, "train")))
    settings = replace(
        task.training, epochs=epochs, global_batch_size=groups * GROUP_SIZE, validate_every=epochs
    )
    reports = fit(
        model_from_spec(task.model, seed=0),
        clocked,
        split_of(uri, "val", task.dataset.hash),
        settings=settings,
        threat_model=task.threat_model,
        options=RunOptions(slots=task.slots),
    )
    steps: list[float] = []
    last: list[float] = []  # of each epoch, the last step and what follows
    for _ in reports:
        ended = perf_counter()
        steps += [later - begin for begin, later in itertools.pairwise(clocked.begins)]
        last.append(ended - clocked.begins[-1])
        clocked.begins.clear()
    return steps[1:], [one - median(steps[1:]) for one in last]


def _measure(task: TrainingTask, epochs: int, meeting: Any, results: Any) -> None:
    torch.set_num_threads(1)
    meeting.wait()
    steps, (*plain, validated) = steps_of(task, groups=GROUPS, epochs=epochs)
    meeting.wait()
    one_group, _ = steps_of(task, groups=1, epochs=1)
    results.put(Measured(steps, one_group, fmean(plain), validated - fmean(plain)))


def measure_workers(task: TrainingTask, *, processes: int, epochs: int) -> list[Measured]:
    """Train in independent processes at the same time, and return what each measured."""
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(processes)
    results = context.Queue()
    arguments = (task, epochs, meeting, results)
    running = [context.Process(target=_measure, args=arguments) for _ in range(processes)]
    return _joined(running, results)


@dataclass(frozen=True)
class Exchanged:
    """Seconds of an exchange of gradients and of statistics, and the bytes of both; work: processor
    seconds of the first in one worker.
    """

    gradients: float
    statistics: float
    work: float
    gradient_bytes: float
    statistics_bytes: float


class NoCompute(nn.Module):
    """All parameters of a model, and gradients of 1 for hardly any compute."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        """Return the sum of all parameters."""
        return torch.stack([one.sum() for one in self.model.parameters()]).sum()


def _exchange(
    task: TrainingTask, rank: int, size: int, folder: str, rounds: int, results: Any
) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about an argument of DDP
    meeting = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    model = model_from_spec(task.model, seed=0)
    ddp = DistributedDataParallel(NoCompute(model), broadcast_buffers=False)
    group = ProcessGroup(rank, size)
    statistics = torch.cat([one.flatten() for one in model.buffers() if one.is_floating_point()])

    def backward(*, alone: bool) -> tuple[float, float]:
        group.barrier()
        started, worked = perf_counter(), process_time()
        with ddp.no_sync() if alone else nullcontext():
            ddp().backward()
        return perf_counter() - started, process_time() - worked

    def averaged() -> float:
        group.barrier()
        return common.seconds_of(lambda: group.sum(statistics))

    for _ in range(2):  # the second builds DDP's buckets anew
        backward(alone=False)
    pairs = [(backward(alone=False), backward(alone=True)) for _ in range(rounds)]
    wall, work = (median(both[kind] - alone[kind] for both, alone in pairs) for kind in (0, 1))
    sizes = sum(one.numel() for one in model.parameters()), len(statistics)
    one_average = median(averaged() for _ in range(rounds))
    results.put(Exchanged(wall, one_average, work, *(4.0 * size for size in sizes)))
    dist.destroy_process_group()


def measure_exchange(task: TrainingTask, *, workers: int, rounds: int) -> Exchanged:
    """Exchange gradients without compute, as training does; return means over the workers."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        running = [
            context.Process(target=_exchange, args=(task, rank, workers, folder, rounds, results))
            for rank in range(workers)
        ]
        of_all = _joined(running, results)
    names = [field.name for field in fields(Exchanged)]
    return Exchanged(**{name: fmean(getattr(one, name) for one in of_all) for name in names})


def _joined(running: list[Any], results: Any) -> list[Any]:
    """Start processes and return what each of them puts into the queue."""
    for process in running:
        process.start()
    found: list[Any] = []
    while len(found) < len(running):
        try:
            found.append(results.get(timeout=LOOK_SECONDS))
        except queue.Empty:
            if any(process.exitcode for process in running):
                raise RuntimeError("a measuring process failed; its error is above") from None
    for process in running:
        process.join()
    return found


def measure_checkpoint(task: TrainingTask, folder: Path) -> tuple[float, float]:
    """Return the seconds for which a checkpoint stops the steps, and those of its write."""
    weights = model_from_spec(task.model, seed=0).state_dict()
    zeros = {name: torch.zeros_like(one) for name, one in weights.items()}
    state = TrainingState(weights=weights, optimizer=zeros, best=weights)
    with StateFiles(Storage(str(folder)), "measured") as files:
        copy = common.seconds_of(lambda: files.write(state))
        return copy, common.seconds_of(files.wait)


def train_on_ray(task: TrainingTask, folder: Path, *, workers: int) -> tuple[float, float]:
    """Train with the product's Ray Train session, in a Ray that runs.

    Returns the wall seconds from the call to the committed record, and those of its epochs.
    """
    from sat_ray.integrations.ray.train import train_all

    records = Records(Storage(str(folder)))
    resources = CrowdedResources(train_workers=workers)
    wall = common.seconds_of(lambda: train_all([task], records, resources))
    record = records.find(task.stage, task.key)
    assert record is not None
    return wall, record.seconds
