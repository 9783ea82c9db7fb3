"""How far one stage of a sweep is, from its committed records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sat_ray.sweep.records.store import Record, Stage
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import CORRUPTIONS, EVALUATE, SEARCH, STRONG, TRAIN, VALIDATE

# In a longer pause between two results the sweep did not run.
PAUSE_SECONDS = 30.0
# stages with a record for each model and shard of a split
SHARDED = {VALIDATE: "val", EVALUATE: "test", STRONG: "test", CORRUPTIONS: "test"}


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best configuration so far.

    val_robust_accuracy: on the validation split, in [0, 1], mean over `models` trainings.
    """

    name: str
    val_robust_accuracy: float
    models: int


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


def stage_status(
    stage: Stage, records: list[Record], *, planned: int | None, at_most: bool, others: int
) -> StageStatus:
    done = count_tasks(stage, records)
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
        seconds_left=seconds_left(records, left=(planned or 0) - done),
    )


def count_tasks(stage: Stage, records: Sequence[Record]) -> int:
    """Count the tasks that are done; the same task may have records under several keys."""
    return len({_identity(stage, record) for record in records})


def _identity(stage: Stage, record: Record) -> tuple[Any, ...]:
    if stage is SEARCH:
        return record.payload["name"], record.payload["until"]
    if stage in SHARDED:
        return record.inputs["weights"], *record.inputs["rows"]
    return (record.payload["name"],) if stage is TRAIN else (record.key,)


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
    images = sum(record.payload.get("n", 0) for record in records)
    seconds = sum(record.seconds for record in records)
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


def seconds_left(records: Sequence[Record], *, left: int) -> float | None:
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
