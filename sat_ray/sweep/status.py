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
from sat_ray.sweep.plan import planned_trials, prepared_dataset
from sat_ray.sweep.records.lease import HEARTBEAT_SECONDS, Holder, read_lease
from sat_ray.sweep.records.so_far import at_most
from sat_ray.sweep.records.store import STATE, Record, Records, Stage
from sat_ray.sweep.search.search_space import SearchPoint, groups
from sat_ray.sweep.tasks import (
    CARD,
    CORRUPTIONS,
    EVALUATE,
    SEARCH,
    STAGES,
    STRONG,
    TRAIN,
    VALIDATE,
    Dataset,
)

READERS = 16
# In a longer pause between two results the sweep did not run.
PAUSE_SECONDS = 30.0
SHARDED = {
    VALIDATE: "val",
    EVALUATE: "test",
    STRONG: "test",
    CORRUPTIONS: "test",
}  # stages with a record for each model and shard of a split
REPORT = ("leaderboard.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best configuration so far.

    val_robust_accuracy: on the validation split, in [0, 1], mean over `models` trainings.
    """

    name: str
    val_robust_accuracy: float
    models: int


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
class StageStatus:
    """How far one stage is.

    done, planned: tasks, None where the plan is not known; at_most: planned is an upper
    bound; other_environment: tasks that another numerical environment made, not counted as done;
    images_per_second: of one task while it ran; accelerator_seconds: spent; last_commit: unix
    time; seconds_left: at the pace so far, None where that is not known or is 0.
    """

    name: str
    done: int
    planned: int | None
    at_most: bool = False
    other_environment: int = 0
    images_per_second: float | None = None
    accelerator_seconds: float = 0.0
    best: Best | None = None
    last_commit: float | None = None
    seconds_left: float | None = None

    @property
    def complete(self) -> bool:
        """Say whether every planned task is committed."""
        return self.planned is not None and self.done >= self.planned


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


def read_status(
    root: Storage, name: str, *, patience: float = HEARTBEAT_SECONDS + 2.0
) -> SweepStatus:
    """Read how far the sweep `name` in `root` is.

    patience: as in `read_lease`. ValueError where its config cannot be read, or names code that no
    person named.
    """
    storage = root.child(name)
    try:
        config = stored_config(storage)
    except FileNotFoundError:
        raise ValueError(f"{storage.uri} is not a sweep: it has no config.json") from None
    with ThreadPoolExecutor(READERS) as pool:
        held = pool.submit(read_lease, storage, patience=patience)
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
        0, _count_tasks(TRAIN, counted[TRAIN]) - len(weights)
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
        planned[SEARCH] = _count_tasks(SEARCH, counted[SEARCH])
    elif config.search.method != "grid" and not counted[TRAIN]:
        bounds.add(SEARCH)
    elif config.search.method != "grid":
        planned[SEARCH] = _count_tasks(
            SEARCH, counted[SEARCH]
        )  # the search has ended, or nothing would train
    if any(record.payload["card"]["verdict"] == PASS for record in counted[CARD]):
        planned[CARD] = len(counted[CARD])
    else:
        bounds.add(CARD)
    return tuple(
        _stage(
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


def _count_tasks(stage: Stage, records: Sequence[Record]) -> int:
    """Count the tasks that are done; the same task may have records under several keys."""
    return len({_identity(stage, record) for record in records})


def _identity(stage: Stage, record: Record) -> tuple[Any, ...]:
    if stage is SEARCH:
        return record.payload["name"], record.payload["until"]
    if stage in SHARDED:
        return record.inputs["weights"], *record.inputs["rows"]
    return (record.payload["name"],) if stage is TRAIN else (record.key,)


def _stage(
    stage: Stage, records: list[Record], *, planned: int | None, at_most: bool, others: int
) -> StageStatus:
    done = _count_tasks(stage, records)
    longest = list(
        {record.payload.get("name"): record for record in sorted(records, key=_until)}.values()
    )
    return StageStatus(
        name=stage.name,
        done=done,
        planned=planned,
        at_most=at_most,
        other_environment=others,
        images_per_second=_images_per_second(records),
        # a trial's later record counts the seconds of its earlier rungs too
        accelerator_seconds=sum(
            record.payload.get("accelerator_seconds", record.seconds)
            for record in (longest if stage is SEARCH else records)
        ),
        best=_best(longest),
        last_commit=records[-1].created if records else None,
        seconds_left=_seconds_left(records, left=(planned or 0) - done),
    )


def _until(record: Record) -> int:
    return int(record.payload.get("until", 0))


def _images_per_second(records: Sequence[Record]) -> float | None:
    rates = [
        record.payload["train_images_per_second"]
        for record in records
        if "train_images_per_second" in record.payload
    ]
    if rates:
        return float(sum(rates) / len(rates))
    images, seconds = (
        sum(record.payload.get("n", 0) for record in records),
        sum(record.seconds for record in records),
    )
    return images / seconds if images and seconds else None


def _best(records: Sequence[Record]) -> Best | None:
    """Return the configuration with the best mean over its trainings, as the champion is chosen.

    The earlier one where two are equal.
    """
    scores: dict[SearchPoint, list[float]] = {}
    for record in records:
        if record.payload.get("val_robust_accuracy", -1.0) >= 0:
            scores.setdefault(SearchPoint.of(record.payload), []).append(
                record.payload["val_robust_accuracy"]
            )
    means = {one: sum(values) / len(values) for one, values in scores.items()}
    if not means:
        return None
    best = max(means, key=lambda one: means[one])
    return Best(name=best.name, val_robust_accuracy=means[best], models=len(scores[best]))


def _seconds_left(records: Sequence[Record], *, left: int) -> float | None:
    """Estimate at the pace of the committed tasks, pauses left out."""
    if left <= 0 or not records:
        return None
    busy, until = 0.0, float("-inf")
    for begin, end in sorted(
        (record.created - record.seconds, record.created) for record in records
    ):
        first = until if begin - until <= PAUSE_SECONDS else begin
        busy += max(0.0, end - first)
        until = max(until, end)
    return left * busy / len(records)
