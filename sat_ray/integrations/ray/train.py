"""The train stage as a session: one Ray Train worker group works through a queue of tasks, committing a record per task.

Start-up (about 10 s) is paid once. A lost worker restarts the group, which skips what is committed and goes on from the last checkpoint;
with fewer workers where that is allowed and the lost ones cannot be replaced, on the same global batch and the same BatchNorm groups.
"""

import json
import logging
import os
from typing import Any

import ray.train
import torch
from ray.experimental import internal_kv
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

from sat_ray.attacks import InfeasiblePointError
from sat_ray.integrations.ray.local.no_storage import nowhere
from sat_ray.integrations.ray.local.orphans import remove_orphans
from sat_ray.integrations.ray.local.process_groups import group_config
from sat_ray.integrations.ray.nodes import selector_for
from sat_ray.integrations.ray.prometheus import training_shown
from sat_ray.storage.local_disk import is_lasting
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.execute import train_and_commit
from sat_ray.sweep.records.store import Records, attempt_name
from sat_ray.sweep.resources import worker_resources
from sat_ray.sweep.tasks import TrainingTask
from sat_ray.training.catastrophic_overfitting import CatastrophicOverfittingError
from sat_ray.training.epoch_metrics import NonFiniteLossError
from sat_ray.training.parallel.process_group import ProcessGroup

MAX_FAILURES = 8
MAX_CONTROLLERS = 8  # of the processes that lead a worker group, one after the other
MAX_FAILED_STARTS = 40  # of a group, one in about six seconds: a node whose disk is full may have room again in four minutes
COLLECTIVE_SECONDS = 600  # a worker that a silent network keeps from its peers gives up then; longer than S3 may be away
ELASTIC_START_SECONDS = 15  # an elastic group gives up on workers that do not come so soon, and asks again for as many as there are


def train_all(tasks: list[TrainingTask], records: Records, resources: ResourceSettings) -> None:
    """Train every task data-parallel on `resources.train_workers` workers; their records are committed when this returns."""
    waiting = _uncommitted(tasks, records)
    if not waiting:
        return
    if resources.fewest_train_workers:
        os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR] = str(ELASTIC_START_SECONDS)
    for task in waiting:
        records.storage.discard(_verdict(task))  # of an earlier start, whose cause may be gone
        internal_kv._internal_kv_del(_verdict(task))
    for left in reversed(range(MAX_CONTROLLERS)):
        try:
            _trainer(waiting, records, resources).fit()
            break
        except (
            ray.exceptions.RayActorError
        ):  # the process that leads the group died, and the group with it
            remove_orphans()
            waiting = _uncommitted(tasks, records)
            if not waiting:
                break
            if not left:
                raise
    if unfinished := _uncommitted(tasks, records):
        raise ArithmeticError(_said(records, unfinished[0])["error"])


def _uncommitted(tasks: list[TrainingTask], records: Records) -> list[TrainingTask]:
    return [task for task in tasks if records.find(task.stage, task.key) is None]


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
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers_wanted(resources),
            use_gpu=gpus > 0,
            resources_per_worker=worker_resources(resources),
            label_selector=selector_for(worker_resources(resources)) or None,
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
    """Return the workers of a session as Ray Train takes them: a number, or the fewest and the most of an elastic group."""
    fewest, most = resources.fewest_train_workers, resources.train_workers
    return (fewest, most) if 0 < fewest < most else most


def _verdict(task: TrainingTask) -> str:
    return f"state/progress/{task.key}.error.json"


def _said(records: Records, task: TrainingTask) -> dict[str, Any]:
    """Return what an earlier start of this session said of a task; {} if nothing."""
    try:
        said: dict[str, Any] = records.storage.read_json(_verdict(task))
    except (FileNotFoundError, ValueError):
        kept = internal_kv._internal_kv_get(_verdict(task))
        said = json.loads(kept) if kept else {}
    return said


def _say(records: Records, task: TrainingTask, error: str, *, final: bool) -> None:
    """Leave word of a task for the next start of this session; with Ray where the storage takes nothing any more."""
    said = {"error": error, "final": final}
    try:
        records.storage.write_json(_verdict(task), said)
    except OSError:
        internal_kv._internal_kv_put(_verdict(task), json.dumps(said))


def _advised(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is too small ({text}); more --resources.train-workers, or a smaller --training.batchnorm-group-size"
    return text


def a_node_leaves() -> bool:
    """Say whether Ray has announced that a node of this worker group goes; every worker has to ask, and is told the same."""
    return ray.train.get_preemption_info() is not None


def _session(settings: dict[str, Any]) -> None:
    """Run in every worker: the same tasks in the same order."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    torch.set_num_threads(settings["threads"])
    context = ray.train.get_context()
    device = f"cuda:{torch.cuda.current_device()}" if settings["gpu"] else "cpu"
    process_group = ProcessGroup(
        rank=context.get_world_rank(), size=context.get_world_size(), device=device
    )
    records = Records(Storage(settings["storage"]))
    with training_shown(records) as after_epoch:
        for task in settings["tasks"]:
            before = _said(records, task)
            if before.get("final"):
                return
            try:
                show = after_epoch if process_group.rank == 0 else lambda report: None
                train_and_commit(
                    task, records, process_group=process_group, on_epoch=show, leaving=a_node_leaves
                )
            except (NonFiniteLossError, CatastrophicOverfittingError) as error:
                # all ranks agree on these, and a new start would end in the same place: no failure for Ray to retry
                if process_group.rank == 0:
                    _say(records, task, f"{task.name}: {error}", final=True)
                return
            except (
                ValueError,
                ArithmeticError,
                OSError,
                InfeasiblePointError,
                torch.OutOfMemoryError,
            ) as error:
                # so may these, and the others do not know: they wait in a collective, and only the end of this worker frees them. Said by
                # two starts it is final; said once, it may come of another worker's end, which tears down what this one was using. A full
                # disk is final at once; other errors of a disk or a network may pass, and are left to the next start
                text = f"{task.name}: {_advised(error)}"
                if is_lasting(error) or not isinstance(error, OSError):
                    _say(
                        records, task, text, final=is_lasting(error) or before.get("error") == text
                    )
                raise
