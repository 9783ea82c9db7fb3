"""What tasks read and where they run: splits of the dataset, and the device."""

import functools

import torch

from sat_ray.checkpoint import MODEL_JSON, RESTORE, read_description
from sat_ray.data.shards.reading import read_split
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import CardTask, EvaluationTask, TrainingTask
from sat_ray.utils.import_string import UnconfirmedCodeError, stored_names


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


def configuration_of(checkpoint: Storage) -> SearchPoint | None:
    """Return how a checkpoint says that it was trained; None where it does not say it.

    Raises ValueError, with the name of the file, where it says something else, and
    UnconfirmedCodeError where it names code that no person named.
    """
    said = read_description(checkpoint)["about"].get("configuration")
    if said is None:
        return None
    try:
        with stored_names(checkpoint.full(MODEL_JSON)):
            return SearchPoint.stored(said)
    except UnconfirmedCodeError:
        raise
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint.uri}: {MODEL_JSON}: {error}; {RESTORE}") from None
