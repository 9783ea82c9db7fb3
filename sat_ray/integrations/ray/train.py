"""The train stage as a session: a Ray Train worker group works through a queue of tasks.

It commits a record per task. Start-up (about 10 s) is paid once. A lost worker restarts the group,
which skips what is committed and goes on from the last checkpoint. Where that is allowed and lost
workers cannot be replaced it has fewer, with the same global batch and the same BatchNorm groups.
Several groups share the tasks where `train_groups` says so; which group trains a task changes no
number.
"""

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer

from sat_ray.attacks import InfeasiblePointError
from sat_ray.integrations.ray.local.no_storage import nowhere
from sat_ray.integrations.ray.local.orphans import remove_orphans
from sat_ray.integrations.ray.local.process_groups import group_config
from sat_ray.integrations.ray.nodes import selector_for
from sat_ray.integrations.ray.private import (
    GROUP_START_SECONDS,
    discard_text,
    keep_text,
    kept_text,
)
from sat_ray.integrations.ray.prometheus import training_shown
from sat_ray.storage.local_disk import in_words, is_lasting
from sat_ray.storage.store import Storage
from sat_ray.sweep.config.resources import ResourceSettings
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.records.store import Records, attempt_name
from sat_ray.sweep.tasks import TrainingTask
from sat_ray.training.catastrophic_overfitting import CatastrophicOverfittingError
from sat_ray.training.epoch_metrics import NonFiniteLossError
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.state import EpochReport
from sat_ray.utils.import_string import confirm, confirmed, first_line
from sat_ray.utils.worker_process import set_up_worker

MAX_FAILURES = 8
MAX_CONTROLLERS = 8  # of the processes that lead a worker group, one after the other
# of a group, one in about six seconds: a node whose disk is full may have room in four minutes
MAX_FAILED_STARTS = 40
# a worker that a silent network keeps from its peers gives up then; longer than S3 may be away
COLLECTIVE_SECONDS = 600
# an elastic group gives up on workers that start later, and requests as many as there are
ELASTIC_START_SECONDS = 15
STOPPED_BY = (NonFiniteLossError, CatastrophicOverfittingError)  # all ranks agree on these
STOPPED_IN_ONE = (
    ValueError,
    ArithmeticError,
    OSError,
    InfeasiblePointError,
    torch.OutOfMemoryError,
)


def train_all(tasks: list[TrainingTask], records: Records, resources: ResourceSettings) -> None:
    """Train every task data-parallel on `resources.train_workers` workers.

    `resources.train_groups` of them are trained at once, each on workers of its own. Their records
    are committed when this returns.
    """
    waiting = _uncommitted(tasks, records)
    if not waiting:
        return
    if resources.fewest_train_workers:
        os.environ[GROUP_START_SECONDS] = str(ELASTIC_START_SECONDS)
    for task in waiting:
        records.storage.discard(_verdict(task))  # of an earlier start, whose cause may be gone
        discard_text(_verdict(task))
    for left in reversed(range(MAX_CONTROLLERS)):
        try:
            _train_in_groups(waiting, records, resources)
            break
        except (ray.exceptions.RayActorError, ray.train.ControllerError) as error:
            if not _lost_a_process(error):
                raise
            # the process that leads a group died or lost one that it was calling, and the group
            # ended with it; no other group is left
            remove_orphans()
            waiting = _uncommitted(tasks, records)
            if not waiting:
                break
            if not left:
                raise
    if unfinished := _uncommitted(tasks, records):
        raise ArithmeticError(_said(records, unfinished[0])["error"])


def _lost_a_process(error: Exception) -> bool:
    """Return whether a process that leads a worker group, or one that it was calling, was lost."""
    cause = error.controller_failure if isinstance(error, ray.train.ControllerError) else error
    return isinstance(cause, ray.exceptions.RayActorError)


def _uncommitted(tasks: list[TrainingTask], records: Records) -> list[TrainingTask]:
    return [task for task in tasks if records.find(task.stage, task.key) is None]


def _train_in_groups(
    waiting: list[TrainingTask], records: Records, resources: ResourceSettings
) -> None:
    """Give every worker group its share of the tasks; return or raise once all have ended.

    None is followed in the main thread: there Ray sets a handler of SIGINT that it never removes,
    which holds the group's controller, a process of 0.4 GiB, until this process ends.
    """
    groups = min(resources.train_groups, len(waiting))
    shares = [waiting[first::groups] for first in range(groups)]
    with ThreadPoolExecutor(groups) as pool:
        running = [pool.submit(_trainer(share, records, resources).fit) for share in shares]
        for one in running:
            one.result()


def _trainer(
    waiting: list[TrainingTask], records: Records, resources: ResourceSettings
) -> TorchTrainer:
    gpus = resources.gpus_per_worker
    return TorchTrainer(
        _session,
        train_loop_config={
            "tasks": waiting,
            "storage": records.storage.uri,
            "threads": resources.cpus_per_worker,
            "gpu": gpus > 0,
            "code": confirmed(),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers_wanted(resources),
            use_gpu=gpus > 0,
            resources_per_worker=resources.worker(),
            label_selector=selector_for(resources.worker()) or None,
        ),
        torch_config=group_config("nccl" if gpus else "gloo", timeout_s=COLLECTIVE_SECONDS),
        run_config=ray.train.RunConfig(
            name=f"session-{attempt_name()}",
            **nowhere(),
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILED_STARTS
            ),
        ),
    )


def workers_wanted(resources: ResourceSettings) -> int | tuple[int, int]:
    """Return the workers of a session as Ray Train takes them.

    A number, or the fewest and the most of an elastic group.
    """
    fewest = resources.fewest_train_workers
    most = resources.train_workers
    return (fewest, most) if 0 < fewest < most else most


def _verdict(task: TrainingTask) -> str:
    return f"state/progress/{task.key}.error.json"


def _said(records: Records, task: TrainingTask) -> dict[str, Any]:
    """Return what an earlier start of this session left about a task; {} if nothing."""
    try:
        said = records.storage.read_object(_verdict(task))
    except (FileNotFoundError, ValueError):
        kept = kept_text(_verdict(task))
        said = json.loads(kept) if kept else {}
    return said


def _say(records: Records, task: TrainingTask, error: str, *, final: bool) -> None:
    """Leave an error of a task for the next start; with Ray where the storage is full."""
    said = {"error": error, "final": final}
    try:
        records.storage.write_json(_verdict(task), said)
    except OSError:
        keep_text(_verdict(task), json.dumps(said))


def _advised(error: Exception) -> str:
    if is_lasting(error):
        return in_words(error)
    text = first_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU's memory is too small ({text}); give more --resources.train-workers, "
            "or a smaller --training.batchnorm-group-size"
        )
    return text


def a_node_leaves() -> bool:
    """Say whether Ray has announced that a node of this worker group is about to go.

    Every worker has to call this; all get the same answer.
    """
    return ray.train.get_preemption_info() is not None


def _session(settings: dict[str, Any]) -> None:
    """Run in every worker: the same tasks in the same order."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    confirm(settings["code"])
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    set_up_worker(threads=settings["threads"])
    context = ray.train.get_context()
    device = f"cuda:{torch.cuda.current_device()}" if settings["gpu"] else "cpu"
    process_group = ProcessGroup(
        rank=context.get_world_rank(), size=context.get_world_size(), device=device
    )
    records = Records(Storage(settings["storage"]))
    with training_shown(records) as after_epoch:
        show = after_epoch if process_group.rank == 0 else lambda report: None
        for task in settings["tasks"]:
            if not _trained(task, records, process_group, on_epoch=show):
                return


def _trained(
    task: TrainingTask,
    records: Records,
    process_group: ProcessGroup,
    *,
    on_epoch: Callable[[EpochReport], None],
) -> bool:
    """Train a task and commit its record; return False where the session ends by an error."""
    before = _said(records, task)
    if before.get("final"):
        return False
    try:
        train_and_commit(
            task, records, process_group=process_group, on_epoch=on_epoch, leaving=a_node_leaves
        )
    except STOPPED_BY as error:
        # a new start would end in the same place: no failure for Ray to retry
        if process_group.rank == 0:
            _say(records, task, f"{task.name}: {error}", final=True)
        return False
    except STOPPED_IN_ONE as error:
        # A new start may end in the same place here too, but the other ranks do not stop: they wait
        # in a collective, and only the end of this worker frees them. The same error of two starts
        # is final; one may come from the end of another worker, which tears down what this one
        # was using. A full disk is final at once; other errors of a disk or a network may pass, and
        # are left to the next start.
        text = f"{task.name}: {_advised(error)}"
        if is_lasting(error) or not isinstance(error, OSError):
            _say(records, task, text, final=is_lasting(error) or before.get("error") == text)
        raise
    return True
