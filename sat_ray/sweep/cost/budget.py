"""The budget of a search, and what a search came to.

Spent is what the committed trials took (`sat_ray.sweep.cost.spent`). Once that reaches the budget
no trial and no rung is started; what runs is brought to the end of its rung and counts, so the
budget is exceeded by at most what runs at that moment. The configuration that starts first, relu
where it is searched, is trained whatever the budget: to the first rung of a grid, else to the end
of its trial. Only the search has a budget: what it found is trained, evaluated and judged in full.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sat_ray.sweep.cost.spent import search_seconds
from sat_ray.sweep.records.shapes import SearchResultRecord
from sat_ray.sweep.records.store import Records, Stage, record_key
from sat_ray.sweep.search.search_space import Group, SearchPoint, groups
from sat_ray.sweep.tasks import SEARCH
from sat_ray.utils.serialization import to_json

if TYPE_CHECKING:
    from sat_ray.sweep.config import CostSettings, SweepConfig

RESULT = Stage("search_result", 1, ("sat_ray.sweep.plan.trainings",), SearchResultRecord)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a search may spend. accelerator_seconds: None for no limit.

    gpus: of each trial, 0 where it has none.
    """

    accelerator_seconds: float | None
    gpus: float

    @classmethod
    def of(cls, config: "SweepConfig") -> "Budget":
        """Return the budget of a sweep's search."""
        return cls(
            accelerator_seconds=config.cost.budget_seconds(), gpus=config.resources.gpus_per_trial
        )

    def is_spent(self, records: Records) -> bool:
        """Say whether the committed trials have taken it all; without a limit nothing is read."""
        return (
            self.accelerator_seconds is not None
            and search_seconds(records, gpus=self.gpus) >= self.accelerator_seconds
        )


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search came to.

    finalists: what is worth a full training; done, planned: numbers of `unit`, trainings up
    to a rung or trials; cut: whether the budget ended it; left_out: activations without a finalist,
    because no trial of theirs was started.
    """

    finalists: tuple[SearchPoint, ...]
    done: int
    planned: int
    unit: str
    cut: bool
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {
            "finalists": [one.to_json() for one in self.finalists],
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SearchResult":
        """Rebuild a result from `to_json`."""
        finalists = tuple(SearchPoint.stored(one) for one in value["finalists"])
        return cls(**{**value, "finalists": finalists, "left_out": tuple(value["left_out"])})

    def sentence(self, cost: "CostSettings", *, spent: float) -> str:
        """Say in one sentence what the search came to. spent: accelerator-seconds."""
        if not self.cut:
            return (
                f"The search ran to its end: {self.done} of {self.planned} {self.unit}, "
                f"{cost.amount(spent)}."
            )
        budget = cost.amount(cost.budget_seconds() or 0.0)
        missing = f"; never tried: {', '.join(self.left_out)}" if self.left_out else ""
        return (
            f"The search was cut by its budget of {budget} at {self.done} of {self.planned} "
            f"{self.unit} ({cost.amount(spent)} spent){missing}. A larger --budget goes on with it."
        )


def result_of(
    config: "SweepConfig",
    best: list[SearchPoint | None],
    *,
    done: int,
    planned: int,
    unit: str,
    cut: bool,
) -> SearchResult:
    """Return the result of a search.

    best: of every group of its configurations, None where no trial of it was started.
    """
    competing = groups(config.search.points())
    left_out = tuple(
        group_name(group) for group, one in zip(competing, best, strict=True) if one is None
    )
    finalists = tuple(one for one in best if one is not None)
    return SearchResult(
        finalists=finalists, done=done, planned=planned, unit=unit, cut=cut, left_out=left_out
    )


def group_name(group: Group) -> str:
    """Name what the members of a group share."""
    one = group.members[0]
    if one.own_attacker:
        return one.activation
    return f"{one.activation} · attacker {one.attacker_activation}"


def commit_result(config: "SweepConfig", records: Records, result: SearchResult) -> None:
    """Commit what the search that made these records came to under its budget.

    More records or another budget ask for another result.
    """
    inputs = _inputs(config, records)
    records.commit(
        RESULT, record_key(RESULT, inputs), inputs=inputs, payload=result.to_json(), seconds=0.0
    )


def find_result(config: "SweepConfig", records: Records) -> SearchResult | None:
    """Return the result of the search.

    None while it runs, or where it stopped for another reason than its end or its budget.
    """
    record = records.find(RESULT, record_key(RESULT, _inputs(config, records)))
    return None if record is None else SearchResult.from_json(record.payload)


def _inputs(config: "SweepConfig", records: Records) -> dict[str, Any]:
    return {
        "search": to_json(config.search),
        "budget": to_json(Budget.of(config)),
        "trials": sorted(records.keys(SEARCH)),
    }


def describe_search(config: "SweepConfig", records: Records) -> dict[str, Any] | None:
    """Return what leaderboard.json says under `search`; None where no result is known."""
    found = find_result(config, records)
    if found is None:
        return None
    spent = search_seconds(records, gpus=config.resources.gpus_per_trial)
    limit = config.cost.budget_seconds()
    return {
        "done": found.done,
        "planned": found.planned,
        "unit": found.unit,
        "finalists": len(found.finalists),
        "cut_by_budget": found.cut,
        "left_out": list(found.left_out),
        "budget_accelerator_seconds": limit,
        "accelerator_seconds": spent,
        "sentence": found.sentence(config.cost, spent=spent),
    }
