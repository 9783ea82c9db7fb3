"""The driver's connection to MLflow, which may be lost and come back.

Only the end of a sweep waits for it; records are written later.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from sat_ray.integrations.mlflow.errors import TrackingError, is_full, is_outage, reason_of
from sat_ray.report.console import Reporter
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.records.renewed_lease import LostLeaseError, check_lease
from sat_ray.sweep.records.store import Record

OUTAGE_SECONDS = 300.0  # an outage may last so long at the end before the sweep fails
PAUSE_SECONDS = 5.0
FIRST_SECONDS = 60.0  # of waiting before the first stage begins
LATER = "the sweep goes on, it will be written later"
NOTHING = "nothing is computed yet"
STATE = "all results and the report are written, but not all runs and models in MLflow"
AGAIN = "then give the same command again: it only writes MLflow"


def _refusal(error: Exception, then: str) -> Exception:
    """Return the error to raise for one that waiting cannot mend; a mistake of ours as it is."""
    if isinstance(error, ValueError):  # raised here, and says what to do
        return error
    of_mlflow = hasattr(error, "get_http_status_code") or isinstance(error, OSError)
    if of_mlflow or type(error).__module__.partition(".")[0] in ("boto3", "botocore"):
        return TrackingError(f"MLflow refuses the sweep's runs: {reason_of(error)}; {then}")
    return error


def _gave_up(error: Exception) -> TrackingError:
    """Say that MLflow could not be written for as long as the sweep waits, and what to do."""
    waited = f"{OUTAGE_SECONDS:g} s"
    if is_full(error):
        disks = f"the disks of its database, its artifacts and {tempfile.gettempdir()}"
        return TrackingError(
            f"MLflow has had no room for {waited} ({reason_of(error)}): {STATE}; "
            f"make room on {disks}, {AGAIN}"
        )
    return TrackingError(
        f"MLflow has not answered for {waited} ({reason_of(error)}): {STATE}; start it, {AGAIN}"
    )


def _trouble(error: Exception) -> str:
    """Say in some words what is wrong with MLflow."""
    if is_full(error):
        return f"has no room left ({reason_of(error)})"
    if is_outage(error):
        return f"does not answer ({type(error).__name__})"
    return f"cannot be written ({reason_of(error)})"


def in_thread(make: Callable[[], Any]) -> "Future[Any]":
    """Call a function in a thread that the end of the process does not wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class TrackerLink:
    """Makes the tracker in a thread, as MLflow takes seconds to import, and again after an outage.

    make: makes the tracker; watch: whether this machine does the work, so that its load is written
    to the sweep's run; a `with` ends that and the thread.
    """

    def __init__(
        self, sweep: Sweep, reporter: Reporter, make: Callable[[], Any], *, watch: bool
    ) -> None:
        self.sweep = sweep
        self.reporter = reporter
        self.make = make
        self.open = ExitStack()
        self.tracker = in_thread(make)
        self.projection: Any = None
        self.watch = watch
        self.away = False

    def __enter__(self) -> "TrackerLink":
        return self

    def __exit__(self, *_: object) -> None:
        self.open.close()

    def check(self) -> None:
        """Open the sweep's run before anything is computed; raise what waiting cannot mend."""
        try:
            self.tracker.result(timeout=FIRST_SECONDS)
            self._reach(lambda projection: None)
        except TimeoutError:
            self.reporter.say(f"MLflow has not answered within {FIRST_SECONDS:g} s; {LATER}")
        except Exception as error:
            if not is_outage(error):
                raise _refusal(error, NOTHING) from None
            self._lose(error, LATER)

    def write(self, write: Callable[[Any], Any]) -> Any:
        """Write to MLflow.

        While it does not answer or has no room, for up to OUTAGE_SECONDS, start over from what it
        and the records hold. Raises TrackingError where that does not end or MLflow refuses.
        """
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                return self._reach(write)
            except Exception as error:
                if not is_outage(error):
                    raise _refusal(error, f"{STATE}; mend it, {AGAIN}") from None
                if time.monotonic() > deadline:
                    raise _gave_up(error) from error
                self._lose(error, f"trying for {OUTAGE_SECONDS:g} s")
            time.sleep(PAUSE_SECONDS)

    def show_progress(self) -> None:
        """Write what is new, if the tracker is there by now; the end writes the records again."""
        if self.tracker.done():
            self._try(lambda projection: projection.update(), None)

    def run_ids(self, models: list[Record]) -> dict[str, str]:
        """Return the run of each training record, by key, if MLflow answers now; else {}."""
        if not self.tracker.done():
            return {}
        found: dict[str, str] = self._try(lambda projection: projection.run_ids(models), {})
        return found

    def _try(self, write: Callable[[Any], Any], otherwise: Any) -> Any:
        try:
            return self._reach(write)
        except LostLeaseError:
            raise
        except Exception as error:
            self._lose(error, LATER)
            return otherwise

    def _reach(self, write: Callable[[Any], Any]) -> Any:
        check_lease(self.sweep.storage)
        answer = write(self._current())
        if self.away:
            self.reporter.say("MLflow answers again")
        self.away = False
        return answer

    def _lose(self, error: Exception, then: str) -> None:
        """Read MLflow's runs again before the next write.

        One may have been made though its answer was lost.
        """
        self.projection = None
        self.tracker = in_thread(self.make)
        if not self.away:
            self.reporter.say(f"MLflow {_trouble(error)}; {then}")
        self.away = True

    def _current(self) -> Any:
        from sat_ray.integrations.mlflow.projection.whole import Projection

        if self.projection is None:
            tracker = self.tracker.result()
            self.projection = Projection(self.sweep, tracker)
            if self.watch:
                self.open.enter_context(tracker.watch(self.projection.parent))
            self.watch = False
        return self.projection


def mlflow_tracker(tracking_uri: str, *, experiment: str, artifact_root: str) -> Any:
    """Connect to MLflow. artifact_root: of a new experiment, "" for the server's own."""
    from sat_ray.integrations.mlflow import MlflowTracker

    # a run made again after a lost answer would be there twice
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowTracker(tracking_uri, experiment=experiment, artifact_root=artifact_root or None)
