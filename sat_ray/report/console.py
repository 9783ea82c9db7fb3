"""The progress of a sweep: live bars on a terminal, plain lines in a log."""

import sys
from collections.abc import Iterable
from time import monotonic, time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from sat_ray.report.formatting import seconds
from sat_ray.sweep.records.store import Record
from sat_ray.utils.names import printable

LINE_SECONDS = 20.0
BAR_WIDTH = 20
RECENT = 8  # trainings whose speed is shown
PLAIN_WIDTH = 140  # of a log: wide enough for the leaderboard


class Reporter:
    """Show the progress of stages; its console prints text without mixing it with bars."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self.live = self.console.is_terminal
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<10}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=BAR_WIDTH),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        )
        # Only the note is shortened on a narrow terminal.
        note = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        said = TextColumn("{task.fields[note]}", table_column=note)
        self.bars = Progress(*columns, said, console=self.console, expand=True)
        self.started = monotonic()

    def __enter__(self) -> "Reporter":
        if self.live:
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line with the time since the start; names in it may come from anywhere."""
        minutes, seconds = divmod(int(monotonic() - self.started), 60)
        line = printable(f"[{minutes:02d}:{seconds:02d}] {text}", kept="\n")
        self.console.print(line, markup=False, soft_wrap=True)

    def stage(
        self, name: str, total: int | None, *, reused: int = 0, at_most: bool = False
    ) -> "StageProgress":
        """Begin to show a stage with `total` units of work, None where that is not known.

        reused: committed before it began; at_most: the stage may end with fewer than `total`.
        """
        return StageProgress(self, name, total, reused=reused, at_most=at_most)


class StageProgress:
    """Follow one stage through the records that it commits."""

    def __init__(
        self,
        reporter: Reporter,
        name: str,
        total: int | None,
        *,
        reused: int = 0,
        at_most: bool = False,
    ) -> None:
        self.reporter = reporter
        self.name = name
        self.total = total
        self.done = 0
        self.began = self.printed = self.latest = monotonic()
        # When the first unit of this run began; the time before it is start-up, not pace.
        self.working = self.began
        self.bar: TaskID | None = None
        if reporter.live:
            self.bar = reporter.bars.add_task(name, total=total, note="", left="")
        self.best: Record | None = None
        self.before: int | None = None  # units committed before this run
        self.rates: list[float] = []  # images per second of the new trainings, oldest first
        self.said = ""
        self.images = 0  # attacked by the new evaluation shards
        if self.bar is None and total:
            planned = f"at most {total}" if at_most else f"{total}"
            reporter.say(f"{name}: {total - min(reused, total)} of {planned} to do")

    def update(
        self, done: int, new: Iterable[Record], *, working: bool = True, note: str = ""
    ) -> None:
        """Show the number of committed records; new: those that came since the last call.

        note: what to say beside it.
        """
        came: list[Record] = []
        for record in new:
            score = record.payload.get("val_robust_accuracy", -1.0)
            if score >= 0 and (
                self.best is None or score > self.best.payload["val_robust_accuracy"]
            ):
                self.best = record
            if self.before is not None:
                if "train_images_per_second" in record.payload:
                    self.rates.append(record.payload["train_images_per_second"])
                self.images += record.payload.get("n", 0)
                came.append(record)
        self.said = note
        self._find_start(came)
        self.before = done if self.before is None else self.before
        if done > self.done:
            self.done, self.latest = done, monotonic()
        if self.bar is not None:
            left = self._left()
            self.reporter.bars.update(self.bar, completed=done, note=self._note(), left=left)
        elif working and (done or self.total) and monotonic() - self.printed > LINE_SECONDS:
            self.printed = monotonic()
            count = f"{done}/{self.total}" if self.total else f"{done}"
            so_far = "" if self._left() else f"{seconds(monotonic() - self.began)} so far"
            known = " · ".join(filter(None, (self._note(), self._left(), so_far)))
            self.reporter.say(f"{self.name} {count} {known}")

    def _find_start(self, came: list[Record]) -> None:
        """Set the start of the earliest of the first new units, by the clock here."""
        if self.working == self.began and came:
            ages = [max(0.0, time() - one.created) + one.seconds for one in came]
            self.working = max(self.began, monotonic() - max(ages))

    def update_shards(self, done: int, total: int | None) -> None:
        """Show the written shards of a dataset; total: None if not known yet."""
        self.total = total
        if self.bar is not None:
            self.reporter.bars.update(self.bar, total=total)
        self.update(done, [])

    def _note(self) -> str:
        parts = [self.said] if self.said else []
        if self.best is not None:
            best = self.best.payload
            accuracy = 100 * best["val_robust_accuracy"]
            parts.append(f"best val robust {accuracy:.1f} % ({best['name']})")
        elapsed = monotonic() - self.began
        if latest := self.rates[-RECENT:]:
            parts.append(f"{sum(latest) / len(latest):,.0f} images/s per training")
        elif self.images and elapsed > 0:
            parts.append(f"{self.images / elapsed:,.1f} images/s")
        return " · ".join(parts)

    def _left(self) -> str:
        """Estimate how long the rest takes, from the units that this run has computed."""
        computed = self.done - (self.before or 0)
        if not self.total or computed <= 0 or self.done >= self.total:
            return ""
        each = (self.latest - self.working) / computed
        left = each * (self.total - self.done) - (monotonic() - self.latest)
        return f"about {seconds(left)} left" if left > 0 else "taking longer than those before"

    def end(self, text: str = "") -> None:
        """Say that the stage is done."""
        spent = monotonic() - self.began
        if self.bar is not None:
            self.reporter.bars.remove_task(self.bar)  # the line that follows says all of it
        self.reporter.say(f"{self.name} done in {spent:.0f} s{f': {text}' if text else ''}")
