"""What the committed shards of an unfinished evaluation show about its result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sat_ray.evaluation.intervals import anytime_interval
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import EvaluationTask


def at_most(broken: int, total: int) -> float:
    """Return what the robust accuracy on `total` images cannot exceed, in [0, 1]."""
    return 1 - broken / total


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
        return at_most(self.broken, self.total)

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
    """Follow the shards of one evaluation in their order.

    Each record is read once, and no more than two counts are kept of it: there may be many.
    """

    def __init__(self, tasks: Sequence[EvaluationTask], records: Records) -> None:
        self.tasks = tasks
        self.records = records
        self._order = [task.key for task in tasks]
        self._found: dict[str, tuple[int, int]] = {}  # images and survivors, by key

    def look(self) -> SoFar:
        """Read the records that have come, and return the bounds."""
        stage = self.tasks[0].stage
        wanted = set(self._order).difference(self._found)
        for key in wanted.intersection(self.records.keys(stage)):
            record = self.records.find(stage, key)
            if record is not None:
                self._found[key] = (record.payload["n"], record.payload["robust"])
        first = list(self._without_gap())
        return SoFar(
            total=self.tasks[-1].last,
            broken=sum(seen - robust for seen, robust in self._found.values()),
            seen=sum(seen for seen, _ in first),
            robust=sum(robust for _, robust in first),
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

    def _without_gap(self) -> Iterator[tuple[int, int]]:
        for key in self._order:
            if key not in self._found:
                return
            yield self._found[key]
