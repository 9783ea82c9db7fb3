"""What the committed shards of an unfinished evaluation show about its result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sat_ray.evaluation.intervals import anytime_interval
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.tasks import EvaluationTask


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """Bounds of the robust accuracy on `total` images.

    broken: images known to be broken, more with every shard; seen, robust: images of the first
    shards, without a gap, and how many of them survived. Shards that are done early hold more
    broken images than others, so only shards without a gap are a sample. shuffled: whether the
    images are in random order, without which no part of them is a sample.
    """

    total: int
    broken: int
    seen: int
    robust: int
    shuffled: bool

    @property
    def at_most(self) -> float:
        """Return what the robust accuracy cannot exceed, whatever the other images show."""
        return 1 - self.broken / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Return the anytime 95 % interval of the robust accuracy on all images."""
        if not self.shuffled:
            return 0.0, self.at_most
        return anytime_interval(self.robust, self.seen, total=self.total)

    def narrow(self, width: float) -> bool:
        """Return whether the interval is at most this wide."""
        low, high = self.interval
        return self.seen > 0 and high - low <= width

    def __str__(self) -> str:
        """Return it as part of a line of progress; "" before the first shard."""
        if not self.broken and not self.seen:
            return ""
        sure = f"robust at most {100 * self.at_most:.1f} %"
        if not self.shuffled or not self.seen:
            return sure
        low, high = self.interval
        return f"{sure}, anytime 95 % interval {100 * low:.1f} to {100 * high:.1f}"


class Committed:
    """Follow the shards of one evaluation in their order; each record is read once."""

    def __init__(self, tasks: Sequence[EvaluationTask], records: Records) -> None:
        self.tasks = tasks
        self.records = records
        self._found: dict[str, Record] = {}

    def look(self) -> SoFar:
        """Read the records that have come, and return the bounds."""
        stage = self.tasks[0].stage
        keys = set(self.records.keys(stage)).difference(self._found)
        for task in self.tasks:
            if task.key in keys and (record := self.records.find(stage, task.key)) is not None:
                self._found[task.key] = record
        first = [record.payload for record in self._without_gap()]
        every = [record.payload for record in self._found.values()]
        return SoFar(
            total=self.tasks[-1].last,
            broken=sum(part["n"] - part["robust"] for part in every),
            seen=sum(part["n"] for part in first),
            robust=sum(part["robust"] for part in first),
            shuffled=self.tasks[0].shuffled,
        )

    def progress(self) -> tuple[int, str]:
        """Look, and return the number of committed shards and the bounds as text."""
        note = str(self.look())
        return self.count, note

    @property
    def count(self) -> int:
        """Return how many shards were committed at the last look."""
        return len(self._found)

    def without_gap(self) -> Sequence[EvaluationTask]:
        """Return the first tasks, up to the first that was not committed at the last look."""
        return self.tasks[: len(list(self._without_gap()))]

    def _without_gap(self) -> Iterator[Record]:
        for task in self.tasks:
            if task.key not in self._found:
                return
            yield self._found[task.key]
