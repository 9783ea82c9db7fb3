"""The search over activation and alpha: a grid halved at rung barriers, or asynchronous search for large spaces.

The grid is deterministic: every rung waits for all its trials, and ties go to the earlier configuration, so a sweep that was killed and
started again promotes what an undisturbed one promotes.
"""

from sat_ray.config import SweepConfig
from sat_ray.configuration import Configuration
from sat_ray.distributed.trials import run_rung
from sat_ray.plan import Dataset, Group, groups, promote, trial_job
from sat_ray.stages import Record, Records


def search_finalists(config: SweepConfig, dataset: Dataset, records: Records) -> list[Configuration]:
    """Return the best configuration of every group, in the order of the search space."""
    if config.search.method == "grid":
        finalists = _grid(config, dataset, records)
        assert finalists is not None
        return finalists
    from sat_ray.distributed.async_search import search_async  # imports Optuna, which the default recipe does without

    return search_async(config, dataset, records)


def committed_finalists(config: SweepConfig, dataset: Dataset, records: Records) -> list[Configuration] | None:
    """Return what a finished search chose, from its records alone; None where the search is not finished."""
    if config.search.method != "grid":
        from sat_ray.distributed.async_search import winners

        return winners(groups(config.search.configurations()), records)
    return _grid(config, dataset, records, run=False)


def _grid(config: SweepConfig, dataset: Dataset, records: Records, *, run: bool = True) -> list[Configuration] | None:
    competing = groups(config.search.configurations())
    scores: dict[Configuration, tuple[float, float]] = {}
    before: dict[Configuration, Record] = {}
    for number, rung in enumerate(config.search.rungs):
        members = [one for group in competing for one in group.members if number == 0 or len(group.members) > 1]
        jobs = [trial_job(config, dataset, one).at(rung) for one in members]
        if run:
            run_rung(jobs, [before.get(one) for one in members], records, config.resources)
        for one, job in zip(members, jobs, strict=True):
            record = records.find(job.stage, job.key)
            if record is None:
                return None
            before[one], scores[one] = record, (record.payload["last_val"][0], record.payload["last_val"][1])
        competing = [promote(group, scores, reduction=config.search.reduction) for group in competing]
    return [_best(group, scores) for group in competing]


def _best(group: Group, scores: dict[Configuration, tuple[float, float]]) -> Configuration:
    return promote(group, scores, reduction=len(group.members)).members[0]
