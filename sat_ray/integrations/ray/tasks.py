"""Stages as plain Ray tasks joined by ObjectRefs, and the fan-out of evaluation inside one."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch

from sat_ray.integrations.ray.local.orphans import remove_orphans
from sat_ray.integrations.ray.nodes import selector_for
from sat_ray.storage.store import Storage
from sat_ray.sweep.config.resources import Resources, ResourceSettings
from sat_ray.sweep.execute.evaluation import card_and_commit, evaluate_and_commit
from sat_ray.sweep.plan.evaluations import open_tasks
from sat_ray.sweep.records.so_far import Committed
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.resources.bundles import STAGE_RESOURCES
from sat_ray.sweep.resources.gpu_sharing import fitting_share
from sat_ray.sweep.tasks import CARD, CardTask, EvaluationTask
from sat_ray.utils.import_string import confirm, confirmed
from sat_ray.utils.worker_process import set_up_worker

# of a task whose process dies, some seconds apart: a node whose disk is full kills each, and may
# have room in two minutes
RETRIES = 16
# submitted and unfinished at once: enough for the slots of any cluster, little for the driver
IN_FLIGHT = 256


# a stage may die with its node; what it committed is not done again
@ray.remote(num_cpus=STAGE_RESOURCES["CPU"], max_retries=RETRIES)
def _stage(function: Callable[..., Any], code: Collection[str], *arguments: Any) -> Any:
    remove_orphans()
    confirm(code)
    return function(*arguments)


def stage_task(
    function: Callable[..., Any], *arguments: Any, name: str, resources: Resources = STAGE_RESOURCES
) -> Any:
    """Run a stage as a task and return its ObjectRef.

    The task waits for arguments that are ObjectRefs. resources: of the task, no CPUs by default.
    """
    options = {
        "num_cpus": resources["CPU"],
        "num_gpus": resources.get("GPU", 0),
        "label_selector": selector_for(resources),
    }
    return _stage.options(name=name, **options).remote(function, confirmed(), *arguments)


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


@ray.remote(max_retries=RETRIES)
def _unit(
    work: Callable[..., Record],
    code: Collection[str],
    task: Any,
    storage: str,
    threads: int,
    gpus: float,
) -> None:
    confirm(code)
    set_up_worker(threads=threads)
    try:
        work(task, Records(Storage(storage)), gpus=gpus)
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"{task.name}: the GPU's memory is too small for this evaluation task ({error}); give "
            "fewer --evaluation.slots, or more --resources.gpus-per-evaluation (1 and no sharing: "
            "a whole GPU for each task)"
        ) from error


def evaluate_all(
    tasks: Iterable[EvaluationTask], records: Records, resources: ResourceSettings
) -> None:
    """Run evaluation tasks in the given order; all are committed when this returns.

    Committed tasks need no resources, so a sweep that only has its report to write starts no node.
    Models with the same weights share their outcomes. With `share_gpus` the first task has a GPU
    alone and shows how many of the others fit on one.
    """
    waiting = open_tasks(tasks, records)
    if resources.share_gpus and (first := next(waiting, None)) is not None:
        _run_all(evaluate_and_commit, [first], records, resources)
        made = records.find(first.stage, first.key)
        assert made is not None
        resources = sharing(resources, made)
    _run_all(evaluate_and_commit, waiting, records, resources)


def evaluate_until_narrow(
    tasks: Sequence[EvaluationTask], records: Records, resources: ResourceSettings, *, width: float
) -> None:
    """Evaluate tasks in their order, and start no more once the result is known to `width`.

    tasks: all shards of one evaluation whose images are in random order; committed ones count too.
    """
    committed = Committed(tasks, records)

    def wanted() -> Iterator[EvaluationTask]:
        for task in open_tasks(tasks, records):
            if committed.look().narrow(width):
                return
            yield task

    at_once = ray.cluster_resources().get("CPU", 1) / resources.cpus_per_evaluation
    if resources.gpus_per_evaluation:
        at_once = ray.cluster_resources().get("GPU", 1) / resources.gpus_per_evaluation
    _run_all(evaluate_and_commit, wanted(), records, resources, in_flight=max(1, int(at_once)))


def sharing(resources: ResourceSettings, first: Record) -> ResourceSettings:
    """Return the resources of tasks like one that ran with a GPU alone: the share that fits."""
    return replace(
        resources,
        share_gpus=False,
        gpus_per_evaluation=fitting_share(first.payload.get("gpu_memory", 1.0)),
    )


def make_card(task: CardTask, records: Records, resources: ResourceSettings) -> Record:
    """Make one robustness card where evaluation runs, unless it is committed; return its record."""
    if records.find(CARD, task.key) is None:
        _run_all(card_and_commit, [task], records, resources)
    made = records.find(CARD, task.key)
    assert made is not None
    return made


def _run_all(
    work: Callable[..., Record],
    tasks: Iterable[Any],
    records: Records,
    resources: ResourceSettings,
    *,
    in_flight: int = IN_FLIGHT,
) -> None:
    """Run tasks, a bounded number of them at once; nothing of those that have ended is held."""
    bundle = resources.evaluation()
    gpus = bundle.get("GPU", 0)
    remote = _unit.options(
        name=work.__name__,
        num_cpus=bundle["CPU"],
        num_gpus=gpus,
        label_selector=selector_for(bundle),
    )
    running: list[Any] = []
    for task in tasks:
        running.append(
            remote.remote(
                work, confirmed(), task, records.storage.uri, resources.cpus_per_evaluation, gpus
            )
        )
        if len(running) >= in_flight:
            running = _without_one(running)
    while running:
        running = _without_one(running)


def _without_one(running: list[Any]) -> list[Any]:
    """Wait for one task, raise what it raised, and return the others."""
    (ready, *_), others = ray.wait(running, num_returns=1)
    result(ready)
    return list(others)
