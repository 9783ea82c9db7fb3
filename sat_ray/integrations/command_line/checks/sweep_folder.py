"""The folder of a sweep or of an evaluation: where it lies, and what it may be called."""

import os
import re

from sat_ray.integrations.command_line.option_values import UsageError
from sat_ray.integrations.mlflow.preflight import sqlite_path
from sat_ray.storage.preflight import check_readable
from sat_ray.storage.store import Storage

# of the storage itself; beside the last lie files whose names begin with it
RESERVED_NAMES = ("data", "mlartifacts", "mlflow.db")


def storage_root(given: str) -> Storage:
    """Open the storage that sweeps share: the one given, else SAT_RAY_STORAGE, else ./runs."""
    root = Storage.at(given or os.environ.get("SAT_RAY_STORAGE") or "./runs")
    if root.is_local and root.is_file(""):
        raise UsageError(f"storage must be a folder or s3://bucket/prefix, got the file {root.uri}")
    return root


def require_there(root: Storage) -> None:
    """Raise ValueError where a storage that is only read does not answer or does not exist."""
    check_readable(root.uri)
    if not root.exists(""):
        raise ValueError(
            f"storage {root.uri} does not exist; "
            "give the one that the sweep was started with: --storage or SAT_RAY_STORAGE"
        )


def tracking_of(given: str, root: Storage) -> str:
    """Return MLflow's address: the one given, else MLFLOW_TRACKING_URI, else a database in root.

    Raises UsageError where the storage can hold no database.
    """
    if named := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return named
    if not root.is_local:
        raise UsageError(
            f"storage {root.uri} is on S3, where no SQLite database can live; "
            "give --tracking-uri or MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{root.uri}/mlflow.db"


def folder_name(given: str) -> str:
    """Return a name that is fit for a folder of the storage; UsageError says what is allowed."""
    *folders, database = RESERVED_NAMES
    reserved = given.casefold() in folders or given.casefold().startswith(
        database
    )  # some disks do not tell data from Data
    if reserved or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", given):
        raise UsageError(
            "name must be up to 64 letters, digits, '.', '_' and '-', not "
            f"{', '.join(folders)} and nothing that begins with {database}, got {given!r}"
        )
    return given


def check_not_a_file(name: str, root: Storage, tracking_uri: str) -> None:
    """Raise UsageError where the folder `name` of a local storage would be a file.

    It may be one of the tracker's database.
    """
    if not root.is_local:
        return
    database = sqlite_path(tracking_uri) if tracking_uri.startswith("sqlite:///") else None
    beside = (
        database is not None and str(database.parent) == root.uri and name.startswith(database.name)
    )
    if beside or root.is_file(name):
        raise UsageError(f"name {name!r} is that of a file in {root.uri}; choose another --name")
