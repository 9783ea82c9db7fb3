"""The driver's line to MLflow: what an outage costs, and how often it is told."""

import io
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from rich.console import Console
from waiting import PATIENCE_SECONDS, until

from sat_ray.integrations.mlflow import client
from sat_ray.integrations.mlflow import writer as tracker_link
from sat_ray.integrations.mlflow.errors import NoAnswerError, TrackingError
from sat_ray.integrations.mlflow.preflight import experiment_name
from sat_ray.integrations.mlflow.writer import TrackerLink, in_thread, mlflow_tracker
from sat_ray.report.console import Reporter
from sat_ray.storage.store import Storage
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.recipes import RECIPES

Fresh = Callable[[Path], str]


class Line:
    """A line to a real tracker that is cut while `cut` is positive, one less at every attempt."""

    def __init__(self, folder: Path) -> None:
        self.cut, self.made, self.uri = 0, 0, f"sqlite:///{folder}/mlflow.db"
        self.artifacts = str(folder / "artifacts")

    def connect(self) -> object:
        """Connect, or fail as a server does that is away."""
        self.made += 1
        self.cut -= 1
        if self.cut >= 0:
            raise NoAnswerError("connection refused")
        return mlflow_tracker(self.uri, experiment="smoke", artifact_root=self.artifacts)


@pytest.fixture
def sweep(tmp_path: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Describe a sweep of which nothing has run, with a database for `Line` and time for a tracker
    on a slow machine.
    """
    fresh(tmp_path)
    monkeypatch.setattr(tracker_link, "FIRST_SECONDS", PATIENCE_SECONDS)
    root = Storage(str(tmp_path / "runs"))
    return Sweep(RECIPES["digits_smoke"](), "s", root, root.child("s"), ("sweep.py",), "")


@pytest.fixture
def reporter() -> Reporter:
    """Return a reporter that writes into memory."""
    made = Reporter()
    made.console = Console(file=io.StringIO(), width=200)
    return made


def said(reporter: Reporter) -> list[str]:
    """Return what was printed, without the times."""
    text = reporter.console.file.getvalue()  # type: ignore[attr-defined]
    return [line.partition("] ")[2] for line in text.splitlines()]


def show_progress(link: TrackerLink) -> None:
    """Wait until the tracker is made, or could not be, and show what is new."""
    link.tracker.exception()
    link.show_progress()


def test_an_outage_is_told_once_and_so_is_its_end(
    sweep: Sweep, reporter: Reporter, tmp_path: Path
) -> None:
    line = Line(tmp_path)
    line.cut = 4
    with TrackerLink(sweep, reporter, line.connect, watch=False) as link:
        for _ in range(4):
            show_progress(link)
        assert said(reporter) == [
            "MLflow does not answer (NoAnswerError); the sweep goes on, it will be written later"
        ]
        show_progress(link)
        show_progress(link)
        assert said(reporter)[1:] == ["MLflow answers again"]
    assert line.made == 5


def test_the_end_of_a_sweep_waits_for_mlflow_and_begins_anew_with_it(
    sweep: Sweep, reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_link, "PAUSE_SECONDS", 0.0)
    line, seen = Line(tmp_path), []
    with TrackerLink(sweep, reporter, line.connect, watch=False) as link:
        link.tracker.result()
        line.cut = 2

        def write(projection: object) -> int:
            seen.append(projection)
            if len(seen) == 1:
                raise NoAnswerError("the answer was lost")
            return 7

        assert link.write(write) == 7
    assert line.made == 4 and len(seen) == 2 and seen[0] is not seen[1]
    assert said(reporter) == [
        "MLflow does not answer (NoAnswerError); trying for 300 s",
        "MLflow answers again",
    ]


def test_what_is_no_outage_is_raised_at_once_and_an_outage_when_patience_is_over(
    sweep: Sweep, reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_link, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(tracker_link, "OUTAGE_SECONDS", 0.0)
    line = Line(tmp_path)

    def fail(projection: object) -> None:
        raise KeyError("ours")

    with TrackerLink(sweep, reporter, line.connect, watch=False) as link:
        with pytest.raises(KeyError, match="ours"):
            link.write(fail)
        line.cut = 99
        link.projection, link.tracker = None, in_thread(line.connect)
        with pytest.raises(TrackingError, match=r"has not answered for 0 s .* only writes MLflow"):
            link.write(lambda projection: None)


def test_what_waiting_cannot_mend_is_refused_before_anything_is_computed(
    sweep: Sweep, reporter: Reporter, fresh: Fresh, tmp_path: Path
) -> None:
    line = Line(tmp_path)
    with TrackerLink(sweep, reporter, line.connect, watch=False) as link:
        link.check()
        experiment = link.tracker.result().experiment_id
    mlflow.MlflowClient(line.uri).delete_experiment(experiment)
    with TrackerLink(sweep, reporter, line.connect, watch=False) as link:
        with pytest.raises(ValueError, match="'smoke' was deleted in MLflow; restore it with"):
            link.check()
        show_progress(link)
        assert link.run_ids([]) == {}
    assert [line.partition(" (")[0] for line in said(reporter)] == ["MLflow cannot be written"]
    (tmp_path / "file").touch()
    line.artifacts, line.uri = str(tmp_path / "file" / "artifacts"), fresh(tmp_path / "other")
    with (
        TrackerLink(sweep, reporter, line.connect, watch=False) as link,
        pytest.raises(TrackingError, match="nothing is computed yet"),
    ):
        link.check()


def test_an_outage_at_the_start_stops_nothing(
    sweep: Sweep, reporter: Reporter, tmp_path: Path
) -> None:
    line = Line(tmp_path)
    line.cut = 1
    with TrackerLink(sweep, reporter, line.connect, watch=False) as link:
        link.check()
        show_progress(link)
    assert said(reporter)[-1] == "MLflow answers again"


def test_the_environment_names_another_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert experiment_name("digits") == "digits"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert experiment_name("digits") == "mine"


def loads(uri: str, run: str) -> list[str]:
    """Return the names of what was written about the load of a machine."""
    metrics = mlflow.MlflowClient(uri).get_run(run).data.metrics
    return [name for name in metrics if name.startswith("system/")]


def test_the_load_of_this_machine_is_written_where_it_does_the_work(
    sweep: Sweep,
    reporter: Reporter,
    fresh: Fresh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that does not watch runs for longer than one that does takes for its figures."""
    monkeypatch.setattr(client, "WATCH_SECONDS", 1)
    watching, silent = Line(tmp_path / "watching"), Line(tmp_path / "silent")
    fresh(tmp_path / "watching")
    fresh(tmp_path / "silent")
    with TrackerLink(sweep, reporter, silent.connect, watch=False) as quiet:
        quiet.check()
        with TrackerLink(sweep, reporter, watching.connect, watch=True) as link:
            link.check()
            run = link.projection.parent
            until(lambda: loads(watching.uri, run), what="the load of this machine")
        assert loads(silent.uri, quiet.projection.parent) == []
