"""The driver's line to MLflow, which may go away and come back: only the end of a sweep waits for it, records are written later."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from pipelines.progress import Reporter
from pipelines.stages import Sweep
from sat_ray.tracking_uri import is_outage

OUTAGE_SECONDS, PAUSE_SECONDS = 300.0, 5.0  # it may stay away so long at the end before the sweep fails


class TrackerLink:
    """Makes the tracker in a thread, as MLflow takes seconds to import, and again after every outage, of which it tells once.

    make: makes the tracker; a `with` ends the watching of this machine's load and the thread.
    """

    def __init__(self, sweep: Sweep, reporter: Reporter, make: Callable[[], Any]) -> None:
        self.sweep, self.reporter, self.make = sweep, reporter, make
        self.threads, self.open = ThreadPoolExecutor(1), ExitStack()
        self.tracker = self.threads.submit(make)
        self.projection: Any = None
        self.watched = self.away = False

    def __enter__(self) -> "TrackerLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()
        self.threads.shutdown()

    def write(self, write: Callable[[Any], Any]) -> Any:
        """Write to MLflow; while it does not answer, for up to OUTAGE_SECONDS, start over from what it and the records hold."""
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                return self._reach(write)
            except Exception as error:
                if not is_outage(error) or time.monotonic() > deadline:
                    raise
                self._lose(error, f"trying for {OUTAGE_SECONDS:g} s")
            time.sleep(PAUSE_SECONDS)

    def show_progress(self) -> None:
        """Write what is new, if the tracker is there by now; an outage costs nothing, the records are written again at the end."""
        if not self.tracker.done():
            return
        try:
            self._reach(lambda projection: projection.update())
        except Exception as error:
            self._lose(error, "the sweep goes on, it will be written later")

    def _reach(self, write: Callable[[Any], Any]) -> Any:
        answer = write(self._current())
        if self.away:
            self.reporter.say("MLflow answers again")
        self.away = False
        return answer

    def _lose(self, error: Exception, then: str) -> None:
        """Read MLflow's runs again before the next write: one may have been made though its answer was lost."""
        self.projection, self.tracker = None, self.threads.submit(self.make)
        if not self.away:
            self.reporter.say(f"MLflow does not answer ({type(error).__name__}); {then}")
        self.away = True

    def _current(self) -> Any:
        from pipelines.tracking import Projection

        if self.projection is None:
            tracker = self.tracker.result()
            self.projection = Projection(self.sweep, tracker)
            if not self.watched:
                self.open.enter_context(tracker.watch(self.projection.parent))
            self.watched = True
        return self.projection


def mlflow_tracker(tracking_uri: str, *, experiment: str, artifact_root: str) -> Any:
    """Connect to MLflow. artifact_root: of a new experiment, "" for the server's own."""
    from sat_ray.mlflow_tracker import MlflowTracker

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # a run made again after a lost answer would be there twice
    return MlflowTracker(tracking_uri, experiment=experiment, artifact_root=artifact_root or None)
