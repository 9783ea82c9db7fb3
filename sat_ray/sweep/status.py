"""The status of a sweep, read from its storage alone, while it runs or after.

It needs no Ray and no MLflow, and writes nothing.

Counts are of committed records, so they hold for whoever looks, on whatever machine: keys name the
numerical environment of the machine that computed, and this need not be it. What the newest
record's environment did not make is counted apart.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sat_ray.evaluation.card import PASS
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.config.stored import stored_config
from sat_ray.sweep.cost.budget import describe_search
from sat_ray.sweep.plan.datasets import prepared_dataset
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.records.lease import Holder, read_lease
from sat_ray.sweep.records.so_far import at_most
from sat_ray.sweep.records.store import STATE, Record, Records, Stage
from sat_ray.sweep.search.search_space import groups
from sat_ray.sweep.stage_status import SHARDED, Best, StageStatus, count_tasks, stage_status
from sat_ray.sweep.tasks import CARD, EVALUATE, SEARCH, STAGES, TRAIN, Dataset

READERS = 16
REPORT = ("leaderboard.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A model of which some shards of the test split are evaluated.

    robust_at_most: in [0, 1]; its robust accuracy cannot exceed it, whatever the others show; seen:
    images of the shards, of `total`.
    """

    name: str
    robust_at_most: float
    seen: int
    total: int


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """How far a sweep is.

    under_way: trainings with a saved state that are not committed; cut: what is to say of a search
    that its budget ended, else ""; report: its path once all is done, else ""; unfinished: models
    that are under evaluation.
    """

    name: str
    uri: str
    config: SweepConfig
    prepared: bool
    stages: tuple[StageStatus, ...]
    under_way: int
    driver: Holder | None
    report: str
    cut: str = ""
    unfinished: tuple[Unfinished, ...] = ()

    @property
    def last_commit(self) -> float | None:
        """Return the unix time of the newest record, by the clock of the machine that wrote it."""
        return max(
            (stage.last_commit for stage in self.stages if stage.last_commit is not None),
            default=None,
        )

    @property
    def current(self) -> StageStatus | None:
        """Return the first stage that is not complete."""
        return next((stage for stage in self.stages if not stage.complete), None)

    @property
    def best(self) -> Best | None:
        """Return the best configuration of the latest stage that has trained any."""
        return next((stage.best for stage in reversed(self.stages) if stage.best is not None), None)


def sweeps_in(root: Storage) -> list[str]:
    """List the sweeps of a storage: its folders that hold a config."""
    return [name for name in root.folders() if root.exists(f"{name}/config.json")]


def read_status(root: Storage, name: str) -> SweepStatus:
    """Read how far the sweep `name` in `root` is.

    ValueError where its config cannot be read, or names code that no person named.
    """
    storage = root.child(name)
    try:
        config = stored_config(storage)
    except FileNotFoundError:
        raise ValueError(f"{storage.uri} is not a sweep: it has no config.json") from None
    with ThreadPoolExecutor(READERS) as pool:
        held = pool.submit(read_lease, storage)
        found = {stage: _read_all(Records(storage), stage, pool) for stage in STAGES}
        driver = held.result()
    dataset = prepared_dataset(config, root)
    searched = describe_search(config, Records(storage))
    stages = _stages(config, found, dataset, searched)
    finished = all(stage.complete for stage in stages) and all(
        storage.exists(path) for path in REPORT
    )
    return SweepStatus(
        name=name,
        uri=storage.uri,
        config=config,
        prepared=dataset is not None,
        stages=stages,
        under_way=len(storage.names(f"{STATE}/progress")),
        driver=driver,
        report=storage.full(REPORT[-1]) if finished else "",
        cut=str(searched["sentence"]) if searched is not None and searched["cut_by_budget"] else "",
        unfinished=_unfinished(config, _same_environment(found[EVALUATE]), dataset),
    )


def _unfinished(
    config: SweepConfig, records: Sequence[Record], dataset: Dataset | None
) -> tuple[Unfinished, ...]:
    """Return the models with some shards of the test split, in the order of their first records."""
    if dataset is None:
        return ()
    total = config.evaluation.evaluated(dataset.manifest["splits"]["test"])
    shards: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        shards.setdefault(record.inputs["weights"], []).append(record.payload)
    found = []
    for parts in shards.values():
        seen = sum(part["n"] for part in parts)
        broken = seen - sum(part["robust"] for part in parts)
        if seen < total:
            name = str(parts[0]["name"])
            most = at_most(broken, total)
            found.append(Unfinished(name=name, robust_at_most=most, seen=seen, total=total))
    return tuple(found)


def _read_all(records: Records, stage: Stage, pool: ThreadPoolExecutor) -> list[Record]:
    """Return every record of a stage, oldest first; on S3 each is a request."""
    found = pool.map(lambda key: records.find(stage, key), records.keys(stage))
    return sorted(
        (record for record in found if record is not None),
        key=lambda record: (record.created, record.key),
    )


def _stages(
    config: SweepConfig,
    found: dict[Stage, list[Record]],
    dataset: Dataset | None,
    searched: dict[str, Any] | None,
) -> tuple[StageStatus, ...]:
    finalists = len(groups(config.search.points())) if searched is None else searched["finalists"]
    models = finalists * len(config.final.seeds)
    counted = {stage: _same_environment(records) for stage, records in found.items()}
    weights = {record.payload["sha256"] for record in counted[TRAIN]}
    twins = max(
        0, count_tasks(TRAIN, counted[TRAIN]) - len(weights)
    )  # models with another's weights: its outcomes are theirs
    planned: dict[Stage, int | None] = {SEARCH: planned_trials(config), TRAIN: models}
    for stage, split in SHARDED.items():
        runs = stage.name in config.evaluation.stages()
        shards = _shards(config, dataset, split) if runs else 0
        planned[stage] = None if shards is None else (models - twins) * shards
        counted[stage] = [
            record for record in counted[stage] if record.inputs["weights"] in weights
        ]
    planned[CARD] = min(config.card.candidates, finalists)
    bounds = set()  # stages whose plan is the most they can need
    if searched is not None:
        planned[SEARCH] = count_tasks(SEARCH, counted[SEARCH])
    elif config.search.method != "grid" and not counted[TRAIN]:
        bounds.add(SEARCH)
    elif config.search.method != "grid":
        planned[SEARCH] = count_tasks(
            SEARCH, counted[SEARCH]
        )  # the search has ended, or nothing would train
    if any(record.payload["card"]["verdict"] == PASS for record in counted[CARD]):
        planned[CARD] = len(counted[CARD])
    else:
        bounds.add(CARD)
    return tuple(
        stage_status(
            stage,
            counted[stage],
            planned=planned[stage],
            at_most=stage in bounds,
            others=len(found[stage]) - len(counted[stage]),
        )
        for stage in STAGES
        if stage not in SHARDED or stage.name in config.evaluation.stages()
    )


def _shards(config: SweepConfig, dataset: Dataset | None, split: str) -> int | None:
    """Return into how many tasks a split is cut for each model.

    None where its images are not prepared.
    """
    return None if dataset is None else config.evaluation.shards(dataset.manifest["splits"][split])


def _same_environment(records: Sequence[Record]) -> list[Record]:
    """Keep the records that were made where the newest was."""
    return [
        record
        for record in records
        if record.inputs.get("environment") == records[-1].inputs.get("environment")
    ]
