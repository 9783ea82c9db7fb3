"""A moved MLflow store: its SQLite file holds the absolute path of the folder of artifacts.

MLflow has no call that changes it.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from sat_ray.integrations.mlflow.preflight import sqlite_path

_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_moved_artifacts(uri: str, artifact_root: str | None) -> bool:
    """Make a SQLite store that was moved or copied with its artifacts point at those beside it.

    Return whether anything changed. artifact_root: the folder of the artifacts now. Artifacts that
    lie only where the store says they are stay there.
    """
    if artifact_root is None or not uri.startswith("sqlite"):
        return False
    path = sqlite_path(uri)
    if path.parent != Path(artifact_root).parent or not path.exists():
        return False
    with closing(sqlite3.connect(path)) as database:
        if not _has(database, "experiments", "artifact_location"):
            return False
        found = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        moved = [old for (old,) in found if old and _was_moved(database, old, artifact_root)]
        for old in moved:
            for table, column in _PLACES:
                if _has(database, table, column):
                    _replace_prefix(
                        database, table, column, old=old, new=_as_before(old, artifact_root)
                    )
        database.commit()
    return bool(moved)


def _was_moved(database: sqlite3.Connection, old: str, new: str) -> bool:
    """Say whether an experiment's folder is now `new`: no run has artifacts at `old` alone."""
    before = Path(old.removeprefix("file://"))
    if before == Path(new) or before.name != Path(new).name:
        return False
    runs = database.execute(
        "SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ?", (len(old) + 1, f"{old}/")
    )
    return not any((before / run).exists() and not (Path(new) / run).exists() for (run,) in runs)


def _as_before(old: str, new: str) -> str:
    return f"file://{new}" if old.startswith("file://") else new


def _has(database: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in database.execute(f"PRAGMA table_info({table})"))


def _replace_prefix(
    database: sqlite3.Connection, table: str, column: str, *, old: str, new: str
) -> None:
    inside = f"{column} = ? OR substr({column}, 1, ?) = ?"
    change = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {inside}"
    database.execute(change, (new, len(old) + 1, old, len(old) + 1, f"{old}/"))
