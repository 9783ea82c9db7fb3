"""What a person sees while a sweep runs: live bars on a terminal, plain lines in a log."""

import sys
from collections.abc import Iterable
from time import monotonic
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sat_ray.names import printable
from sat_ray.report.text import seconds
from sat_ray.stages import Record

LINE_SECONDS = 20.0
RECENT = 8  # trainings whose speed is shown
PLAIN_WIDTH = 140  # of a log: wide enough for the leaderboard


class Reporter:
    """Show stages as they go; `console.print` goes through it, so that bars and text do not mix."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self.live = self.console.is_terminal
        columns = (SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console)
        self.started = monotonic()

    def __enter__(self) -> "Reporter":
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.bars.stop()

    def say(self, text: str) -> None:
        """Print a line with the time since the start; names in it may come from anywhere."""
        minutes, seconds = divmod(int(monotonic() - self.started), 60)
        line = printable(f"[{minutes:02d}:{seconds:02d}] {text}", kept="\n")
        self.console.print(line, markup=False, soft_wrap=True)

    def stage(self, name: str, total: int | None, *, reused: int = 0) -> "StageProgress":
        """Begin to show a stage with `total` units of work, None where that is not known; reused: committed before it began."""
        return StageProgress(self, name, total, reused=reused)


class StageProgress:
    """Follow one stage through the records that it commits."""

    def __init__(self, reporter: Reporter, name: str, total: int | None, *, reused: int = 0) -> None:
        self.reporter, self.name, self.total, self.done = reporter, name, total, 0
        self.began = self.printed = self.latest = monotonic()
        self.bar: TaskID | None = reporter.bars.add_task(name, total=total, note="") if reporter.live else None
        self.best: Record | None = None
        self.before: int | None = None  # committed when it was first looked at: no measure of how fast this run is
        self.rates: list[float] = []  # images per second of each training that came, in the order they came
        self.images = 0  # attacked by the evaluation shards that came
        if self.bar is None and total:
            reporter.say(f"{name}: {total - min(reused, total)} of {total} to do")

    def update(self, done: int, new: Iterable[Record], *, working: bool = True) -> None:
        """Show the number of committed records; new: those that came since the last call."""
        for record in new:
            score = record.payload.get("val_robust_accuracy", -1.0)
            if score >= 0 and (self.best is None or score > self.best.payload["val_robust_accuracy"]):
                self.best = record
            if self.before is not None:
                self.rates += [record.payload["train_images_per_second"]] if "train_images_per_second" in record.payload else []
                self.images += record.payload.get("n", 0)
        self.before = done if self.before is None else self.before
        if done > self.done:
            self.done, self.latest = done, monotonic()
        if self.bar is not None:
            self.reporter.bars.update(self.bar, completed=done, note=self._note())
        elif working and done and monotonic() - self.printed > LINE_SECONDS:
            self.printed = monotonic()
            self.reporter.say(f"{self.name} {done}{f'/{self.total}' if self.total else ''} {self._note()}")

    def update_shards(self, done: int, total: int | None) -> None:
        """Show the number of shards of a dataset that are written, of how many, None where that is not known yet."""
        self.total = total
        if self.bar is not None:
            self.reporter.bars.update(self.bar, total=total)
        self.update(done, [])

    def _note(self) -> str:
        parts = []
        if self.best is not None:
            parts.append(f"best val robust {100 * self.best.payload['val_robust_accuracy']:.1f} % ({self.best.payload['name']})")
        elapsed, computed = monotonic() - self.began, self.done - (self.before or 0)
        if latest := self.rates[-RECENT:]:
            parts.append(f"{sum(latest) / len(latest):,.0f} images/s per training")
        elif self.images and elapsed > 0:
            parts.append(f"{self.images / elapsed:,.1f} images/s")
        if self.total and computed > 0 and self.done < self.total:
            each = (self.latest - self.began) / computed  # until one came: what is under way has no pace yet
            left = each * (self.total - self.done) - (monotonic() - self.latest)
            parts.append(f"about {seconds(left)} left" if left > 0 else "taking longer than those before")
        return " · ".join(parts)

    def end(self, text: str = "") -> None:
        """Say that the stage is done."""
        spent = monotonic() - self.began
        if self.bar is not None:
            self.reporter.bars.update(self.bar, total=self.total or 1, completed=self.total or 1)
        self.reporter.say(f"{self.name} done in {spent:.0f} s{f': {text}' if text else ''}")
