"""MLflow's database: made under another name and renamed, so that a file in its place is complete.

MLflow migrates a new database step by step. SQLite keeps each step, and MLflow cannot go on from a
step in the middle: a process that was killed there would leave a file that never opens again.
"""

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sat_ray.integrations.mlflow.preflight import DATABASES, sqlite_path
from sat_ray.storage.local_disk import flush
from sat_ray.storage.uris import redacted

BESIDE = ("", "-journal", "-wal", "-shm")  # what SQLite may keep beside a database of that name


@contextmanager
def sole_creator(uri: str) -> Iterator[None]:
    """Let one process at a time open a SQLite file: of several that migrate it all but one fail."""
    if not uri.startswith("sqlite"):
        yield
        return
    path = sqlite_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def settle_database(uri: str) -> None:
    """Make a SQLite database that is not there, and check the schema of one that is.

    Call it inside `sole_creator`. Raises ValueError, with what to do, for a schema that this MLflow
    cannot use; anything that is no database is left alone.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme == "sqlite" and not _holds_data(path := sqlite_path(uri)):
        _make(path)
    elif scheme == "sqlite" or scheme in DATABASES:
        _check_schema(uri)


def _holds_data(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _make(path: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    unfinished = Path(f"{path}.new")
    for end in BESIDE:  # of a start that was killed
        with suppress(FileNotFoundError):
            os.unlink(f"{unfinished}{end}")
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    flush(unfinished)
    os.replace(unfinished, path)
    flush(path.parent)


def _check_schema(uri: str) -> None:
    """Raise ValueError where a database is of another MLflow, or of a start that was killed."""
    from mlflow.store.db.utils import (
        _get_latest_schema_revision,
        _get_schema_version,
        _is_empty_database,
        create_sqlalchemy_engine,
    )

    engine = create_sqlalchemy_engine(uri)
    try:
        found = _get_schema_version(engine)
        wanted = _get_latest_schema_revision()
        if found == wanted or _is_empty_database(engine):  # PostgreSQL undoes a killed migration
            return
        unfinished = not _has_experiments(engine)
    finally:
        engine.dispose()
    shown = redacted(uri)
    if unfinished:
        raise ValueError(
            f"tracking database {shown} is unfinished (schema {found or 'unknown'}): an MLflow "
            "server makes it now, or the program that made it was killed; try again in a minute, "
            "and if this message stays, move the database away: it holds no runs, and a new one "
            "is made"
        )
    if _is_known(found):
        raise ValueError(
            f"tracking database {shown} has the schema {found} of an older MLflow, this one needs "
            f"{wanted}; make a copy of it and run: mlflow db upgrade {shlex.quote(shown)}"
        )
    raise ValueError(
        f"tracking database {shown} has the schema {found} of a newer MLflow, this one needs "
        f"{wanted}; install the MLflow that wrote it, or choose another database with "
        "--tracking-uri"
    )


def _has_experiments(engine: Any) -> bool:
    """Say whether MLflow ever opened this database: it makes an experiment after the migration."""
    import sqlalchemy

    try:
        with engine.connect() as connection:
            question = sqlalchemy.text("SELECT 1 FROM experiments LIMIT 1")
            return connection.execute(question).first() is not None
    except sqlalchemy.exc.SQLAlchemyError:  # no such table
        return False


def _is_known(revision: str | None) -> bool:
    """Say whether this MLflow has a migration that leads to a revision."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(db_url=""))
    try:
        return revision is not None and scripts.get_revision(revision) is not None
    except CommandError:
        return False
