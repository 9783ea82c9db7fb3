"""The search over activation and alpha: a grid halved at rung barriers, or asynchronous search.

The grid is deterministic: every rung waits for all its trials, and ties go to the earlier
configuration, so a sweep that was killed and started again promotes what an undisturbed one
promotes. A search that its budget cut is over until the budget grows.
"""

from collections.abc import Sequence

from sat_ray.integrations.ray.search.trials import run_rung
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.budget import Budget, SearchResult, commit_result, find_result, result_of
from sat_ray.sweep.execute.training import discard_states
from sat_ray.sweep.plan.trainings import planned_trials, trial_task
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.search.model_selection import mean_accuracy
from sat_ray.sweep.search.search_space import SearchPoint, groups
from sat_ray.sweep.search.successive_halving import Climb, Scores, climbs, in_turn, next_rung
from sat_ray.sweep.tasks import SEARCH, Dataset


def search_finalists(config: SweepConfig, dataset: Dataset, records: Records) -> list[SearchPoint]:
    """Return the best configuration of every group, in the order of the search space.

    Where the budget cut the search, of every group that was tried.
    """
    found = find_result(config, records)
    if found is None or not found.cut:
        found = _searched(config, dataset, records)
        if not found.cut:
            discard_states(records)
        commit_result(config, records, found)
    return list(found.finalists)


def _searched(config: SweepConfig, dataset: Dataset, records: Records) -> SearchResult:
    if config.search.method == "grid":
        return _grid(config, dataset, records)
    # imports Optuna, which the default recipe does without
    from sat_ray.integrations.ray.search.async_search import search_async

    return search_async(config, dataset, records)


def committed_finalists(
    config: SweepConfig, dataset: Dataset, records: Records
) -> list[SearchPoint] | None:
    """Return what a finished search chose, from its records alone; None where it is unfinished."""
    if (found := find_result(config, records)) is not None:
        return list(found.finalists)
    if config.search.method != "grid":
        from sat_ray.integrations.ray.search.async_search import winners

        return winners(groups(config.search.points()), records)
    best = [None if one.waiting else one.best for one in _climbs(config, dataset, records)[0]]
    return None if None in best else [one for one in best if one is not None]


def _grid(config: SweepConfig, dataset: Dataset, records: Records) -> SearchResult:
    budget = Budget.of(config)
    rungs = config.search.rungs
    exempt = in_turn([group.members for group in groups(config.search.points())])[0]
    while True:
        found, committed = _climbs(config, dataset, records)
        rung, waiting = next_rung(found)
        if budget.is_spent(records):
            waiting = [one for one in waiting if one == exempt and rung == rungs[0]]
        if not waiting:
            break
        trials = [
            (one, seed)
            for one in waiting
            for seed in config.search.seeds
            if (one, rung, seed) not in committed
        ]
        shorter = 0 if rung == rungs[0] else rungs[rungs.index(rung) - 1]  # no record has 0 epochs
        before = [committed.get((one, shorter, seed)) for one, seed in trials]
        tasks = [trial_task(config, dataset, one, seed=seed).at(rung) for one, seed in trials]
        run_rung(
            tasks,
            before,
            records,
            config.resources,
            budget=budget,
            exempt=[task for task in tasks if task.configuration == exempt and rung == rungs[0]],
        )
    return result_of(
        config,
        [one.best for one in found],
        done=len(committed),
        planned=planned_trials(config),
        unit="trainings",
        cut=any(one.waiting for one in found),
    )


_Committed = dict[tuple[SearchPoint, int, int], Record]
"""The records of a search by configuration, rung in epochs and seed."""


def _climbs(
    config: SweepConfig,
    dataset: Dataset,
    records: Records,
) -> tuple[list[Climb], _Committed]:
    """Return how far every group has come, and what is committed of the search."""
    by_key = {record.key: record for record in records.all(SEARCH)}
    committed: _Committed = {}
    for one in config.search.points():
        for seed in config.search.seeds:
            task = trial_task(config, dataset, one, seed=seed)
            for rung in config.search.rungs:
                if (record := by_key.get(task.at(rung).key)) is not None:
                    committed[one, rung, seed] = record
    competing = groups(config.search.points())
    scores = _scores(committed, seeds=len(config.search.seeds))
    return climbs(competing, scores, config.search), committed


def _scores(committed: _Committed, *, seeds: int) -> Scores:
    """Return the mean (robust, clean) validation accuracy of the rungs with all their seeds."""
    found: dict[tuple[SearchPoint, int], list[Sequence[float]]] = {}
    for (one, rung, _), record in committed.items():
        found.setdefault((one, rung), []).append(record.payload["last_val"])
    return {
        place: (
            mean_accuracy([one[0] for one in values]),
            mean_accuracy([one[1] for one in values]),
        )
        for place, values in found.items()
        if len(values) == seeds
    }
