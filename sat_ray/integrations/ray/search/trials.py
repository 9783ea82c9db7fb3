"""Search trials as Ray Tune trials: reused actors, one trial in one process, a committed record per trial and rung."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.execution import class_cache

from sat_ray.integrations.ray.local.no_storage import nowhere
from sat_ray.integrations.ray.nodes import selector_for, this_node_leaves
from sat_ray.integrations.ray.prometheus import training_shown
from sat_ray.storage.local_disk import is_lasting
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.cost.budget import Budget
from sat_ray.sweep.execute import train_and_commit
from sat_ray.sweep.records.store import Record, Records, attempt_name
from sat_ray.sweep.resources import trial_resources
from sat_ray.sweep.tasks import TrainingTask

METRIC, TIME, CUT = "val_robust_accuracy", "epochs", "cut_by_budget"
LOST = "storage_lost"  # what a trial reports that cannot write: the search ends, since no other trial could


class _StopWhenLost(tune.Stopper):
    """End every trial once one has said that the storage takes nothing any more."""

    def __init__(self) -> None:
        self.lost = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Look at what a trial reports; say whether it ends."""
        self.lost = self.lost or LOST in result
        return self.lost

    def stop_all(self) -> bool:
        """Say whether all trials end."""
        return self.lost


def run_trials(
    trainable: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    records: Records,
    resources: ResourceSettings,
    *,
    scheduler: Any = None,
    searcher: Any = None,
    samples: int = 1,
    callbacks: Sequence[Any] = (),
) -> int:
    """Run Tune trials of a function in reused actors and return how many ended without being cut by the budget.

    A failed trial's own error is raised when all have ended.
    """
    keep_keys_back()
    tuner = tune.Tuner(
        tune.with_resources(_ending_when_lost(trainable), _placement(resources)),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            reuse_actors=True,
            scheduler=scheduler,
            search_alg=searcher,
            num_samples=samples,
        ),
        run_config=tune.RunConfig(
            name=f"search-{attempt_name()}",
            **nowhere(),
            failure_config=tune.FailureConfig(max_failures=3),
            stop=_StopWhenLost(),
            verbose=0,
            callbacks=list(callbacks),
        ),
    )
    outcomes = list(tuner.fit())
    if lost := [outcome.metrics[LOST] for outcome in outcomes if LOST in (outcome.metrics or {})]:
        raise OSError(lost[0])
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failed:
        raise (
            failed[0].cause
            if isinstance(failed[0], ray.exceptions.RayTaskError) and failed[0].cause
            else failed[0]
        )
    return sum(not (outcome.metrics or {}).get(CUT) for outcome in outcomes)


def _ending_when_lost(
    trainable: Callable[[dict[str, Any]], None],
) -> Callable[[dict[str, Any]], None]:
    """Return the function of a trial that reports a full disk, for which Tune would start it again and again."""

    def trial(space: dict[str, Any]) -> None:
        try:
            trainable(space)
        except OSError as error:
            if not is_lasting(error):
                raise
            tune.report({METRIC: 0.0, TIME: 0, CUT: True, LOST: str(error)})

    return trial


def keep_keys_back() -> None:
    """Keep Ray Tune from naming the S3 keys in the runtime environment of its actors, which Ray logs; every node has its own."""
    class_cache.ENV_VARS_TO_PROPAGATE = {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if not name.startswith("AWS_")
    }


def _placement(resources: ResourceSettings) -> tune.PlacementGroupFactory:
    bundle = trial_resources(resources)
    selector = selector_for(bundle)
    return tune.PlacementGroupFactory(
        [bundle], **({"bundle_label_selector": [selector]} if selector else {})
    )


def run_rung(
    tasks: Sequence[TrainingTask],
    previous: Sequence[Record | None],
    records: Records,
    resources: ResourceSettings,
    *,
    budget: Budget,
    exempt: Sequence[TrainingTask],
) -> None:
    """Train tasks to their epoch, in this order, each going on from its record of the rung before, until the budget is spent.

    Returns when all that were started are committed. exempt: the tasks that are trained whatever the budget.
    """
    queue = [
        ray.put(both) for both in zip(tasks, previous, strict=True)
    ]  # one by one: a trial reads its own task alone
    storage, threads = records.storage.uri, resources.cpus_per_trial
    spared = {task.key for task in exempt}

    def trial(config: dict[str, Any]) -> None:
        torch.set_num_threads(threads)
        task, before = ray.get(queue[config["trial"]])
        own = kept_records(storage)
        if task.key not in spared and budget.is_spent(own):
            report_cut(None)
            return
        with training_shown(own, trial=True) as after_epoch:
            record = train_and_commit(
                task, own, previous=before, on_epoch=after_epoch, leaving=this_node_leaves
            )
        report_record(record)

    run_trials(trial, {"trial": tune.grid_search(list(range(len(tasks))))}, records, resources)


@functools.lru_cache(maxsize=1)
def kept_records(storage: str) -> Records:
    """Return the records of a sweep, the same object for every trial of this process: what one has read the next need not."""
    return Records(Storage(storage))


def report_record(record: Record) -> None:
    """Tell Tune what a committed record scored."""
    tune.report({METRIC: record.payload["last_val"][0], TIME: record.payload["until"]})


def report_cut(before: Record | None) -> None:
    """Tell Tune that the budget ends a trial. before: its record of the rung before, None where it has not begun."""
    score, until = (
        (0.0, 0) if before is None else (before.payload["last_val"][0], before.payload["until"])
    )
    tune.report({METRIC: score, TIME: until, CUT: True})
