"""MLflow's database survives a kill at any moment of its making;
one that cannot be used is refused.
"""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import mlflow  # here, so that forked processes need not import it
import pytest

from sat_ray.integrations.mlflow import MlflowTracker
from sat_ray.integrations.mlflow.database import settle_database, sole_creator

FORK = multiprocessing.get_context("fork")


def start(uri: str, experiment: str = "e") -> multiprocessing.process.BaseProcess:
    """Open the tracker in another process."""
    given = {"experiment": experiment, "artifact_root": None}
    process = FORK.Process(target=MlflowTracker, args=(uri,), kwargs=given)
    process.start()
    return process


def make(folder: Path) -> Path:
    """Make a database and return its file."""
    path = folder / "mlflow.db"
    with sole_creator(f"sqlite:///{path}"):
        settle_database(f"sqlite:///{path}")
    return path


def begun(unfinished: Path, *, after: int) -> bool:
    """Say whether a database is written, and not the one that an earlier start left then."""
    try:
        found = unfinished.stat()
    except FileNotFoundError:  # the earlier one is removed
        return False
    return found.st_size > 0 and found.st_mtime_ns > after


def test_a_start_that_is_killed_while_it_makes_the_database_leaves_the_place_free(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "mlflow.db"
    unfinished = Path(f"{path}.new")
    for delay in (0.0, 0.05, 0.3, 0.8):
        before = unfinished.stat().st_mtime_ns if unfinished.exists() else 0
        process = start(f"sqlite:///{path}")
        assert process.pid is not None
        while not begun(unfinished, after=before) and process.is_alive():
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if path.exists():  # a quick machine: it was complete by then
            break
        assert unfinished.exists()
    again = start(f"sqlite:///{path}")
    again.join()
    assert again.exitcode == 0 and path.exists() and not unfinished.exists()


def altered(complete: Path, folder: Path, *statements: str) -> str:
    """Copy the database, change the copy, and return its URI."""
    path = Path(shutil.copy(complete, folder / "mlflow.db"))
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    return f"sqlite:///{path}"


RUN = (
    "INSERT INTO experiments (experiment_id, name, lifecycle_stage, workspace) VALUES (0, 'x', "
    "'active', 'default')"
)
REFUSED = {
    "newer": (
        (RUN, "UPDATE alembic_version SET version_num = 'ffffffffffff'"),
        "of a newer MLflow.*--tracking-uri",
    ),
    "older": (
        (RUN, "UPDATE alembic_version SET version_num = '451aebb31d03'"),
        "mlflow db upgrade sqlite:",
    ),
    "unfinished": (
        ("DROP TABLE experiments", "UPDATE alembic_version SET version_num = '451aebb31d03'"),
        "move the database away",
    ),
    "without a version": (("DELETE FROM alembic_version",), "is unfinished .schema unknown."),
}


@pytest.mark.parametrize(("statements", "message"), REFUSED.values(), ids=REFUSED)
def test_a_database_that_this_mlflow_cannot_use_is_refused_with_what_to_do(
    statements: tuple[str, ...], message: str, complete: Path, tmp_path: Path
) -> None:
    uri = altered(complete, tmp_path, *statements)
    with pytest.raises(ValueError, match=message):
        MlflowTracker(uri, experiment="e", artifact_root=None)


def test_a_deleted_experiment_is_there_again_after_the_command_that_the_refusal_prints(
    complete: Path, tmp_path: Path
) -> None:
    uri = altered(complete, tmp_path)
    tracker = MlflowTracker(uri, experiment="it's mine", artifact_root=None)
    mlflow.MlflowClient(uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match="MLFLOW_EXPERIMENT_NAME") as refused:
        MlflowTracker(uri, experiment="it's mine", artifact_root=None)
    command = str(refused.value).partition("restore it with: ")[2].partition(", or choose")[0]
    beside = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, check=True, env=beside, capture_output=True)
    assert (
        MlflowTracker(uri, experiment="it's mine", artifact_root=None).experiment_id
        == tracker.experiment_id
    )
