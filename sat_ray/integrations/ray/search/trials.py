"""Search trials as Ray Tune trials.

Actors are reused, one trial trains in one process, and each trial commits a record per rung.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune

from sat_ray.integrations.ray.local.no_storage import nowhere
from sat_ray.integrations.ray.nodes import selector_for, this_node_leaves
from sat_ray.integrations.ray.private import keep_keys_back
from sat_ray.integrations.ray.prometheus import training_shown
from sat_ray.storage.local_disk import in_words, is_lasting
from sat_ray.storage.store import Storage
from sat_ray.sweep.config.resources import ResourceSettings
from sat_ray.sweep.cost.budget import Budget
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.records.store import Record, Records, attempt_name
from sat_ray.sweep.tasks import TrainingTask
from sat_ray.utils.import_string import confirm, confirmed
from sat_ray.utils.worker_process import set_up_worker

METRIC = "val_robust_accuracy"
TIME = "epochs"
CUT = "cut_by_budget"
LOST = "storage_lost"  # reported by a trial that cannot write: the search ends, as no other could


class _StopWhenLost(tune.Stopper):
    """End every trial once one has reported that the storage takes nothing any more."""

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
    resources: ResourceSettings,
    *,
    scheduler: Any = None,
    searcher: Any = None,
    samples: int = 1,
    callbacks: Sequence[Any] = (),
) -> int:
    """Run Tune trials of a function in reused actors; return how many the budget did not cut.

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
    for outcome in outcomes:
        error = outcome.error
        if isinstance(error, ray.exceptions.RayTaskError) and error.cause:
            raise error.cause
        if error is not None:
            raise error
    return sum(not (outcome.metrics or {}).get(CUT) for outcome in outcomes)


def _ending_when_lost(
    trainable: Callable[[dict[str, Any]], None],
) -> Callable[[dict[str, Any]], None]:
    """Return the function of a trial that reports a full disk.

    For an error Tune would start it again and again.
    """
    code = confirmed()

    def trial(space: dict[str, Any]) -> None:
        confirm(code)
        try:
            trainable(space)
        except OSError as error:
            if not is_lasting(error):
                raise
            tune.report({METRIC: 0.0, TIME: 0, CUT: True, LOST: in_words(error)})

    return trial


def _placement(resources: ResourceSettings) -> tune.PlacementGroupFactory:
    bundle = resources.trial()
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
    """Train tasks to their epoch, in this order, until the budget is spent.

    Each goes on from its record of the rung before. Returns when all that were started are
    committed. exempt: the tasks that are trained whatever the budget.
    """
    # one by one: a trial reads its own task alone
    queue = [ray.put(both) for both in zip(tasks, previous, strict=True)]
    storage = records.storage.uri
    threads = resources.cpus_per_trial
    spared = {task.key for task in exempt}

    def trial(config: dict[str, Any]) -> None:
        set_up_worker(threads=threads)
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

    run_trials(trial, {"trial": tune.grid_search(list(range(len(tasks))))}, resources)


@functools.lru_cache(maxsize=1)
def kept_records(storage: str) -> Records:
    """Return the records of a sweep, the same object for every trial of this process.

    What one trial has read the next need not read.
    """
    return Records(Storage(storage))


def report_record(record: Record) -> None:
    """Report to Tune what a committed record scored."""
    tune.report({METRIC: record.payload["last_val"][0], TIME: record.payload["until"]})


def report_cut(before: Record | None) -> None:
    """Report to Tune that the budget ends a trial.

    before: its record of the rung before, None where it has not begun.
    """
    if before is None:
        tune.report({METRIC: 0.0, TIME: 0, CUT: True})
        return
    score = before.payload["last_val"][0]
    tune.report({METRIC: score, TIME: before.payload["until"], CUT: True})
