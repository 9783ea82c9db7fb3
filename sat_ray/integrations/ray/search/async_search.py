"""Asynchronous search: ASHA over random alphas, or Optuna's TPE over alpha.

Alphas are drawn between the smallest and the largest of an activation's grid, log-uniform.

Arrival order decides here, so decisions are recorded: a trial that was stopped stays stopped, a
committed trial reports its recorded scores again without training, and Optuna first gets the points
of the trials that exist. Every row reproduces from its own config and seed. A cut by the budget is
not recorded: with a larger budget the trial goes on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from sat_ray.integrations.ray.nodes import this_node_leaves
from sat_ray.integrations.ray.prometheus import training_shown
from sat_ray.integrations.ray.search.trials import (
    CUT,
    METRIC,
    TIME,
    kept_records,
    report_cut,
    report_record,
    run_trials,
)
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.budget import Budget, SearchResult, result_of
from sat_ray.sweep.cost.spent import longest_trials
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.trainings import trial_task
from sat_ray.sweep.records.shapes import StoppedRecord
from sat_ray.sweep.records.store import Records, Stage
from sat_ray.sweep.search.search_space import Group, SearchPoint, groups
from sat_ray.sweep.search.successive_halving import in_turn
from sat_ray.sweep.tasks import Dataset
from sat_ray.utils.randomness import Randomness
from sat_ray.utils.worker_process import set_up_worker

STOPPED = Stage("search_stopped", 1, ("sat_ray.sweep.plan.trainings",), StoppedRecord)


def search_async(config: SweepConfig, dataset: Dataset, records: Records) -> SearchResult:
    """Run `search.samples` trials, or as many as the budget allows.

    Returns the best configuration of every group that was tried.
    """
    competing = groups(config.search.points())
    if config.search.samples < len(competing):
        raise ValueError(
            f"search.samples must be >= {len(competing)}, one for each activation, "
            f"got {config.search.samples}"
        )
    first = in_turn([group.members[:1] for group in competing])
    ranges = {
        index: bounds
        for index, group in enumerate(competing)
        if (bounds := _alpha_bounds(group)) is not None
    }
    if config.search.method == "asha":
        drawn = _random(config, competing, ranges, count=config.search.samples - len(first))
        chosen = list(dict.fromkeys(first + drawn))
        planned = len(chosen)
        done = _run_asha(config, dataset, records, chosen)
    else:
        planned = config.search.samples
        done = _run_optuna(config, dataset, records, competing, ranges, first)
    best = _best(competing, records)
    return result_of(config, best, done=done, planned=planned, unit="trials", cut=done < planned)


def _alpha_bounds(group: Group) -> tuple[float, float] | None:
    """Return the smallest and largest alpha of a group; None where there is nothing to search."""
    alphas = [one.alpha for one in group.members if one.alpha is not None]
    if len(set(alphas)) > 1 and group.members[0].own_attacker:
        return min(alphas), max(alphas)
    return None


def _random(
    config: SweepConfig,
    competing: list[Group],
    ranges: dict[int, tuple[float, float]],
    *,
    count: int,
) -> list[SearchPoint]:
    if not ranges:
        return []
    draws = Randomness.of(config.search.seeds[0], torch.arange(count)).uniform("search", (2,))
    found = []
    for choice, position in draws.tolist():
        index = list(ranges)[int(choice * len(ranges))]
        found.append(_with_alpha(competing[index], _between(*ranges[index], position)))
    return found


def _between(low: float, high: float, position: float) -> float:
    """Return the alpha at a position in [0, 1], log-uniform where both ends are positive."""
    if _is_logarithmic(low):
        return low * math.exp(position * math.log(high / low))
    return low + position * (high - low)


def _is_logarithmic(low: float) -> bool:
    return low > 0  # the alphas of a user's activation may be 0 or negative


def _with_alpha(group: Group, alpha: float) -> SearchPoint:
    return SearchPoint(activation=group.members[0].activation, alpha=float(f"{alpha:.4g}"))


def _trial(
    config: SweepConfig,
    dataset: Dataset,
    records: Records,
    chosen: Callable[[dict[str, Any]], SearchPoint],
    *,
    exempt: SearchPoint,
) -> Any:
    """Return the function of a trial.

    exempt: the configuration that is trained whatever the budget.
    """
    storage = records.storage.uri
    threads = config.resources.cpus_per_trial
    budget = Budget.of(config)

    def trial(space: dict[str, Any]) -> None:
        set_up_worker(threads=threads)
        own = kept_records(storage)
        one = chosen(space)
        before = None
        task = trial_task(config, dataset, one)
        stopped = own.find(STOPPED, task.key)
        for rung in config.search.rungs:
            if stopped is not None and rung > stopped.payload["until"]:
                return
            if (
                one != exempt
                and own.find(task.stage, task.at(rung).key) is None
                and budget.is_spent(own)
            ):
                report_cut(before)
                return
            with training_shown(own, trial=True) as after_epoch:
                before = train_and_commit(
                    task.at(rung),
                    own,
                    previous=before,
                    on_epoch=after_epoch,
                    leaving=this_node_leaves,
                )
            report_record(before)

    return trial


class _RememberStops(tune.Callback):
    """Commit a trial's last rung when it ends, by the scheduler or of itself."""

    def __init__(
        self,
        config: SweepConfig,
        dataset: Dataset,
        records: Records,
        chosen: Callable[[dict[str, Any]], SearchPoint],
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.records = records
        self.chosen = chosen

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the decision; a cut by the budget is none."""
        if (trial.last_result or {}).get(CUT):
            return
        task = trial_task(self.config, self.dataset, self.chosen(trial.config))
        until = (trial.last_result or {}).get(TIME)
        if until is not None:
            self.records.commit(
                STOPPED, task.key, inputs=task.inputs, payload={"until": until}, seconds=0.0
            )


def _run_asha(
    config: SweepConfig, dataset: Dataset, records: Records, chosen: list[SearchPoint]
) -> int:
    def pick(space: dict[str, Any]) -> SearchPoint:
        one: SearchPoint = chosen[space["trial"]]
        return one

    rungs = config.search.rungs
    scheduler = ASHAScheduler(
        time_attr=TIME,
        grace_period=rungs[0],
        max_t=max(rungs[-1], 2),
        reduction_factor=config.search.reduction,
    )
    return run_trials(
        _trial(config, dataset, records, pick, exempt=chosen[0]),
        {"trial": tune.grid_search(list(range(len(chosen))))},
        config.resources,
        scheduler=scheduler,
        callbacks=[_RememberStops(config, dataset, records, pick)],
    )


@dataclass(frozen=True)
class _Space:
    """Draw a group, and an alpha where the group has one to choose.

    A class, because Tune pickles the searcher.
    """

    groups: int
    ranges: dict[int, tuple[float, float]]

    def __call__(self, trial: Any) -> None:
        index = trial.suggest_categorical("group", list(range(self.groups)))
        if index in self.ranges:
            low, high = self.ranges[index]
            trial.suggest_float(f"alpha_{index}", low, high, log=_is_logarithmic(low))


class _Optuna(OptunaSearch):
    """Optuna, which proposes nothing more once a budget is spent.

    A class, because Tune pickles the searcher.
    """

    def __init__(
        self, *given: Any, budget: Budget, records: Records, needed: int, **settings: Any
    ) -> None:
        super().__init__(*given, **settings)
        self.budget = budget
        self.records = records
        self.needed = needed

    def suggest(self, trial_id: str) -> Any:
        """Propose the next trial.

        The first `needed` are those that exist and the one that is trained whatever the budget.
        """
        self.needed -= 1
        if self.needed < 0 and self.budget.is_spent(self.records):
            return Searcher.FINISHED
        return super().suggest(trial_id)


def _run_optuna(
    config: SweepConfig,
    dataset: Dataset,
    records: Records,
    competing: list[Group],
    ranges: dict[int, tuple[float, float]],
    first: list[SearchPoint],
) -> int:
    def pick(space: dict[str, Any]) -> SearchPoint:
        group = competing[space["group"]]
        alpha = space.get(f"alpha_{space['group']}")
        return group.members[0] if alpha is None else _with_alpha(group, alpha)

    known = [
        _as_point(SearchPoint.of(record.payload), competing, ranges)
        for record in longest_trials(records)
    ]
    start = [_as_point(one, competing, ranges) for one in first]
    points = [point for point in dict.fromkeys(map(_frozen, [*known, *start])) if point]
    searcher = _Optuna(
        _Space(len(competing), ranges),
        metric=METRIC,
        mode="max",
        seed=config.search.seeds[0],
        points_to_evaluate=[dict(point) for point in points],
        budget=Budget.of(config),
        records=Records(records.storage),
        needed=len(known) + 1,
    )
    return run_trials(
        _trial(config, dataset, records, pick, exempt=first[0]),
        {},
        config.resources,
        searcher=searcher,
        samples=config.search.samples,
        callbacks=[_RememberStops(config, dataset, records, pick)],
    )


def _frozen(point: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(point.items())


def _as_point(
    one: SearchPoint, competing: list[Group], ranges: dict[int, tuple[float, float]]
) -> dict[str, Any]:
    index = [group.members[0].pair for group in competing].index(one.pair)
    return {"group": index} | ({f"alpha_{index}": one.alpha} if index in ranges else {})


def winners(competing: list[Group], records: Records) -> list[SearchPoint] | None:
    """Return the best configuration of every group; None where a group has no trial."""
    best = _best(competing, records)
    return None if None in best else [one for one in best if one is not None]


def _best(competing: list[Group], records: Records) -> list[SearchPoint | None]:
    """Choose by the longest rung reached, then (robust, clean) validation accuracy.

    Ties go to the earlier trial.
    """
    best: dict[tuple[str, str], tuple[tuple[float, ...], SearchPoint]] = {}
    for record in longest_trials(records):
        one = SearchPoint.of(record.payload)
        score = (record.payload["until"], *record.payload["last_val"])
        if one.pair not in best or score > best[one.pair][0]:
            best[one.pair] = (score, one)
    wanted = [group.members[0].pair for group in competing]
    return [best[pair][1] if pair in best else None for pair in wanted]
