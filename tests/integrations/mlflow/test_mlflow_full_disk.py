"""MLflow on a full disk: one line that says what is written and what to do; no folder stays."""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from repository import paths_of_tests
from rich.console import Console
from sweeps import environment

from sat_ray.integrations.mlflow import writer
from sat_ray.integrations.mlflow.errors import TrackingError, is_full, is_outage, reason_of
from sat_ray.integrations.mlflow.values import Point
from sat_ray.integrations.mlflow.writer import TrackerLink, mlflow_tracker
from sat_ray.integrations.temporary_folders import remove_abandoned
from sat_ray.models import build_model
from sat_ray.models.export import NotExportedError
from sat_ray.report.console import Reporter
from sat_ray.storage.store import Storage
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.recipes import RECIPES

DISK = "16m"
POINTS = [Point("loss", step / 7, step, 1e9 + step) for step in range(2000)]


def log_points(projection: Any) -> None:
    projection.tracker.log(projection.parent, POINTS)


def attach_file(projection: Any) -> None:
    projection.tracker.artifact(projection.parent, "outcomes.parquet", b"x" * 100_000)


def attach_model(projection: Any) -> None:
    model = build_model(
        "small_resnet",
        activation="silu",
        num_classes=10,
        in_channels=1,
        mean=(0.3,),
        std=(0.35,),
        seed=1,
    )
    projection.tracker.model(projection.parent, model.eval(), name="model", input_shape=(1, 8, 8))


def fill(disk: Path, *, leaving: int = 0) -> Path:
    """Fill a disk to its last bytes; return the file that does."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
    os.truncate(ballast, max(0, ballast.stat().st_size - leaving))
    return ballast


@pytest.mark.parametrize("small_disk", [DISK], indirect=True)
@pytest.mark.parametrize(
    ("full", "leaving", "write"),
    [
        pytest.param("database", 0, log_points, id="database"),
        pytest.param("artifacts", 0, attach_file, id="artifacts"),
        pytest.param("artifacts", 100_000, attach_model, id="artifacts, a model"),
        pytest.param("temporary", 0, attach_file, id="temporary files"),
        pytest.param("temporary", 150_000, attach_model, id="temporary files, a model"),
        pytest.param("temporary", 2_000_000, attach_model, id="temporary files, a model's rest"),
    ],
)
def test_a_full_disk_ends_in_one_line_that_says_what_is_there_and_what_to_do(
    small_disk: Path,
    fresh: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    full: str,
    leaving: int,
    write: Callable[[Any], None],
) -> None:
    monkeypatch.setattr(writer, "OUTAGE_SECONDS", 0.0)
    monkeypatch.setattr(writer, "PAUSE_SECONDS", 0.0)
    places = {name: tmp_path / name for name in ("database", "artifacts", "temporary")}
    places[full] = small_disk
    for place in places.values():
        place.mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(places["temporary"]))
    root = Storage(str(tmp_path / "runs"))
    sweep = Sweep(RECIPES["digits_smoke"](), "s", root, root.child("s"), ("sweep.py",), "")
    reporter = Reporter()
    reporter.console = Console(file=io.StringIO(), width=400)
    make = partial(
        mlflow_tracker,
        fresh(places["database"]),
        experiment="smoke",
        artifact_root=str(places["artifacts"] / "kept"),
    )
    with TrackerLink(sweep, reporter, make, watch=False) as link:
        link.write(lambda projection: None)
        ballast = fill(small_disk, leaving=leaving)
        assert link._try(write, "later") == "later"  # as while the sweep runs
        with pytest.raises(TrackingError) as caught:
            link.write(write)
        text = str(caught.value)
        assert "\n" not in text and text.startswith("MLflow has had no room for 0 s (")
        assert "all results and the report are written, but not all runs and models" in text
        assert "make room on the disks" in text and text.endswith("it only writes MLflow")
        ballast.unlink()
        link.projection = None
        link.tracker = writer.in_thread(make)
        link.write(write)
    said = reporter.console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("MLflow has no room left (") == 1
    assert not list(places["temporary"].glob("sat_ray-*"))
    assert "SQLAlchemy database error" not in caplog.text  # a traceback beside the line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(flush)\n(sqlite3.OperationalError) database or disk is full\n[SQL: x]", "database or"),
        ("INTERNAL_ERROR: [Errno 28] No space left on device: '/x'", "No space left"),
    ],
)
def test_the_line_that_says_most_is_shown_of_a_full_disk(text: str, reason: str) -> None:
    error = RuntimeError(text)
    assert is_full(error) and is_outage(error)
    assert reason in reason_of(error) and "\n" not in reason_of(error)
    assert not is_full(NotExportedError("the model cannot be exported"))


EXPORTING = """
import sys, time
from test_mlflow_full_disk import attach_model
from sat_ray.integrations.mlflow import MlflowTracker
from types import SimpleNamespace
tracker = MlflowTracker(f"sqlite:///{sys.argv[1]}/mlflow.db", experiment="e", artifact_root=None)
def upload(model_id, folder):
    print(folder, flush=True)
    time.sleep(600)
tracker._client.log_model_artifacts = upload  # stays at the moment between export and upload
run = tracker.run("one", name="one", tags={}, params={})
attach_model(SimpleNamespace(tracker=tracker, parent=run))
"""


def test_the_folder_of_a_killed_export_goes_at_the_next_start(
    fresh: Callable[[Path], str], tmp_path: Path
) -> None:
    uri = fresh(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = environment(TMPDIR=str(temporary), PYTHONPATH=paths_of_tests())
    command = [sys.executable, "-c", EXPORTING, str(tmp_path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        exported = Path(process.stdout.readline().strip())
        process.kill()
    assert (exported / "MLmodel").is_file() and exported.is_relative_to(temporary)
    assert remove_abandoned(temporary) == [exported.parent]
    assert list(temporary.iterdir()) == []
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("e").experiment_id
    assert [str(one.status) for one in client.search_logged_models([experiment])] == ["PENDING"]
