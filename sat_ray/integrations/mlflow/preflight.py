"""Where the tracker lives: checks of its URI before anything is started; no login in a message."""

import os
import socket
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sat_ray.integrations.mlflow.errors import NoAnswerError
from sat_ray.storage.uris import redacted

ALLOWED = "sqlite:///FOLDER/mlflow.db, http(s)://HOST:PORT or postgresql+psycopg://HOST/DATABASE"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"  # MLflow's own variable
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def experiment_name(recipe: str) -> str:
    """Return the experiment of a sweep: the one that the environment names, else the recipe."""
    return os.environ.get(EXPERIMENT) or recipe


def check_tracking(uri: str, *, timeout_seconds: float = 10.0) -> None:
    """Raise ValueError, with what to do, where no tracker can be made at a URI; change nothing."""
    scheme, host, port = address_of(uri)
    try:
        if scheme == "sqlite":
            _probe_sqlite(sqlite_path(uri), timeout_seconds)
        elif scheme in ("http", "https"):
            _probe_server(uri, timeout_seconds)
        elif host:  # without one the driver's own environment names it
            address = (host, port or DATABASES[scheme])
            socket.create_connection(address, timeout_seconds).close()
    except (OSError, UnicodeError, sqlite3.Error) as error:
        if scheme == "sqlite":
            raise ValueError(
                f"tracking database {sqlite_path(uri)} cannot be written ({error}); "
                "choose a writable place with --tracking-uri"
            ) from None
        # the text of other errors may hold the URI with the login
        reason = str(error) if type(error) is OSError else type(error).__name__
        raise NoAnswerError(
            f"tracking server {redacted(uri)} gives no good answer within {timeout_seconds:g} s "
            f"({reason}); start it or correct --tracking-uri"
        ) from None


def address_of(uri: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port; ValueError where no tracker has such a URI."""
    shown = redacted(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:  # its message may quote a piece of the password
        raise ValueError(
            f"tracking_uri {shown} cannot be read; percent-encode the login; use {ALLOWED}"
        ) from None
    scheme = parts.scheme.partition("+")[0]  # without the database's driver
    if scheme in ("", "file"):
        raise ValueError(
            f"tracking_uri {shown} is a folder, which this MLflow refuses; use {ALLOWED}"
        )
    if scheme not in ("sqlite", "http", "https", *DATABASES):
        raise ValueError(f"tracking_uri {shown} has the unknown scheme {scheme!r}; use {ALLOWED}")
    return scheme, parts.hostname, port


def sqlite_path(uri: str) -> Path:
    """Return the file that a sqlite URI names."""
    path = uri.partition(":///")[2].partition("?")[0]
    if path in ("", ":memory:"):
        raise ValueError(f"tracking_uri {redacted(uri)} names no file; use {ALLOWED}")
    return Path(path).absolute()


def _probe_sqlite(path: Path, timeout_seconds: float) -> None:
    folder = next(parent for parent in path.parents if parent.exists())
    tempfile.TemporaryFile(dir=folder).close()  # the journal lies beside the database
    if path.exists():
        place = f"{path.as_uri()}?mode=rw"
        opened = sqlite3.connect(place, uri=True, timeout=timeout_seconds, isolation_level=None)
        with closing(opened) as database:
            database.execute("BEGIN IMMEDIATE")  # takes the write lock and changes nothing


def _probe_server(uri: str, timeout_seconds: float) -> None:
    import requests  # arrives with MLflow, and reads the same proxy and certificate settings

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    answer = requests.get(
        f"{uri.rstrip('/')}/health", timeout=timeout_seconds, verify=verify, allow_redirects=False
    )
    # 401, 403 and redirects are left to the first real request
    if answer.status_code == 404 or answer.status_code >= 500:
        raise OSError(f"status {answer.status_code} for /health")


def login_to_environment(uri: str) -> str:
    """Move the login of a server's URI to where MLflow reads it.

    Then no message, artifact URI or tag can show it.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
