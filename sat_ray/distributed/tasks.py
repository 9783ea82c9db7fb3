"""Stages as plain Ray tasks joined by ObjectRefs, and the fan-out of evaluation inside one."""

from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from sat_ray.bundles import STAGE_RESOURCES, Resources, evaluation_resources
from sat_ray.config import ResourceSettings
from sat_ray.distributed.nodes import selector_for
from sat_ray.jobs import card_and_commit, evaluate_and_commit
from sat_ray.plan import CardTask, EvaluationTask
from sat_ray.stages import Record, Records
from sat_ray.storage import Storage

IN_FLIGHT = 256  # submitted and unfinished at once: enough for any cluster's slots, little for the driver to hold


@ray.remote(num_cpus=STAGE_RESOURCES["CPU"], max_retries=3)  # with its node a stage may die; what it committed is not done again
def _stage(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def stage_task(function: Callable[..., Any], *arguments: Any, name: str, resources: Resources = STAGE_RESOURCES) -> Any:
    """Run a stage as a task, of no CPUs unless it says so, and return its ObjectRef; arguments that are ObjectRefs are waited for."""
    options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0), "label_selector": selector_for(resources)}
    return _stage.options(name=name, **options).remote(function, *arguments)


def wait(ref: Any, *, seconds: float) -> bool:
    """Wait for a task a while; say whether it has ended."""
    ready, _ = ray.wait([ref], timeout=seconds)
    return bool(ready)


def result(ref: Any) -> Any:
    """Return what a task returned, or raise what it raised, as itself."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from error


@ray.remote(max_retries=3)
def _unit(work: Callable[[Any, Records], Record], task: Any, storage: str, threads: int) -> Record:
    torch.set_num_threads(threads)
    return work(task, Records(Storage(storage)))


def evaluate_all(tasks: Sequence[EvaluationTask], records: Records, resources: ResourceSettings) -> list[Record]:
    """Run evaluation tasks in the given order, largest first where the caller sorted them so; return their records in that order."""
    return _run_all(evaluate_and_commit, tasks, records, resources)


def make_card(task: CardTask, records: Records, resources: ResourceSettings) -> Record:
    """Make one robustness card where evaluation runs; return its record."""
    return _run_all(card_and_commit, [task], records, resources)[0]


def _run_all(work: Callable[[Any, Records], Record], tasks: Sequence[Any], records: Records, resources: ResourceSettings) -> list[Record]:
    bundle = evaluation_resources(resources)
    remote = _unit.options(name=work.__name__, num_cpus=bundle["CPU"], num_gpus=bundle.get("GPU", 0), label_selector=selector_for(bundle))
    waiting = list(enumerate(tasks))[::-1]
    running: dict[Any, int] = {}
    done: dict[int, Record] = {}
    while waiting or running:
        while waiting and len(running) < IN_FLIGHT:
            index, task = waiting.pop()
            running[remote.remote(work, task, records.storage.uri, resources.cpus_per_evaluation)] = index
        ready, _ = ray.wait(list(running), num_returns=1)
        for ref in ready:
            done[running.pop(ref)] = result(ref)
    return [done[index] for index in range(len(tasks))]
