"""Report which part of a robustness card is being computed, to a callback or on stderr."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

OnProgress = Callable[[str, float], None]
"""Called with the name of each part when it begins, and the seconds since the card was begun."""
PATIENCE = 3.0  # seconds of work before anything is printed


def silent(part: str, seconds: float) -> None:
    """Report nothing."""


@contextmanager
def reporting(on_progress: OnProgress | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of each part when it begins.

    on_progress: None for stderr.
    """
    began = perf_counter()
    if on_progress is not None:
        yield lambda part: on_progress(part, perf_counter() - began)
        return
    lines = _Lines()
    try:
        yield lambda part: lines.begin(part, perf_counter() - began)
    finally:
        lines.end(perf_counter() - began)


class _Lines:
    """Print one line per part on stderr, once the work has taken longer than PATIENCE."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.part = ""
        self.printing = False
        self.ended = False
        self.timer = threading.Timer(PATIENCE, self._begin_printing)
        self.timer.daemon = True
        self.timer.start()

    def begin(self, part: str, seconds: float) -> None:
        """Note that a part begins."""
        with self.lock:
            self.part = part
            if self.printing:
                self._print(f"{part} ({seconds:.0f} s so far)")

    def end(self, seconds: float) -> None:
        """Stop the clock, and say how long it took where anything was printed."""
        self.timer.cancel()
        with self.lock:
            self.ended = True
            if self.printing:
                self._print(f"ended after {seconds:.0f} s")

    def _begin_printing(self) -> None:
        with self.lock:
            if self.ended:
                return
            self.printing = True
            self._print(f"{self.part} ({PATIENCE:.0f} s so far)")

    @staticmethod
    def _print(text: str) -> None:
        print(f"robustness card: {text}", file=sys.stderr, flush=True)
