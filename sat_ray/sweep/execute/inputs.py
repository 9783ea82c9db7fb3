"""What tasks read and where they run: splits of the dataset, and the device."""

import functools

import torch

from sat_ray.data.shards.reading import read_split
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage
from sat_ray.sweep.tasks import CardTask, EvaluationTask, TrainingTask


@functools.lru_cache(maxsize=4)
def split_of(uri: str, split: str, content: str) -> Split:
    """Load a split once per process.

    content: hash of the manifest, so that other data is another entry of the cache.
    """
    return read_split(Storage.at(uri), split)


def device_of(accelerator: str) -> torch.device:
    """Return the device a task runs on: this process's GPU where the sweep asked for one."""
    return torch.device("cuda", torch.cuda.current_device()) if accelerator else torch.device("cpu")


def accelerator_of(task: TrainingTask | EvaluationTask | CardTask) -> str:
    """Return the GPU model of a task's environment, "" for a CPU."""
    device = str(task.environment["device"])
    return device.partition(":")[2] if device.startswith("cuda") else ""
