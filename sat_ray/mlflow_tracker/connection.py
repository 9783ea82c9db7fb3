"""What MLflow keeps in the process and in its database file, held so that neither surprises anybody."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from sat_ray.tracking_uri import sqlite_path


@contextmanager
def sole_creator(uri: str) -> Iterator[None]:
    """Let one process at a time open a SQLite file: of several that migrate a fresh one at once, all but one crash."""
    if not uri.startswith("sqlite"):
        yield
        return
    path = sqlite_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def global_tracking_uri(uri: str) -> Iterator[None]:
    """Set MLflow's global URI for a while: its database registry looks a models:/ source up there, whatever client asks."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
