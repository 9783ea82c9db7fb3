"""Where the tracker lives: checks of its URI before anything is started, and no login in any message."""

import os
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sat_ray.storage.outages import is_away
from sat_ray.storage.uris import redacted

ALLOWED = "sqlite:///FOLDER/mlflow.db, http(s)://HOST:PORT or postgresql+psycopg://HOST/DATABASE"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"  # MLflow's own variable
PASSING = ("locked", "disk is full")  # in SQLite's words: a later attempt may succeed
OF_FILES = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def experiment_name(recipe: str) -> str:
    """Return the experiment of a sweep: the one that the environment names, else the recipe."""
    return os.environ.get(EXPERIMENT) or recipe


class NoAnswerError(ValueError):
    """The tracker does not answer, or answers that it cannot now."""


def is_outage(error: BaseException) -> bool:
    """Say whether a call to a tracker failed for a reason that may pass.

    Nothing answered, or the server could not. MLflow gives the same status to what SQLite refuses
    for good, so there its words decide.
    """
    if "(sqlite3." in str(error):
        return any(word in str(error) for word in PASSING)
    status = getattr(error, "get_http_status_code", None)  # what MLflow raises has it
    if status:
        return int(status()) >= 500
    if isinstance(error, OF_FILES):
        return False
    if isinstance(error, (NoAnswerError, OSError)):  # what requests raises is an OSError
        return True
    return any(is_away(one) for one in (error, error.__context__) if one)  # of an S3 artifact store


def check_tracking(uri: str, *, timeout_seconds: float = 10.0) -> None:
    """Check that a tracker can be made at this URI, changing nothing; ValueError says in one line what to do."""
    shown = redacted(uri)
    try:
        parts, port = urlsplit(uri), urlsplit(uri).port
    except ValueError:  # its message may quote a piece of the password
        raise ValueError(
            f"tracking_uri {shown} cannot be read; percent-encode the login; allowed: {ALLOWED}"
        ) from None
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        _check_sqlite(uri, timeout_seconds)
    elif scheme in ("http", "https"):
        _within(
            timeout_seconds, lambda: _probe_server(uri, timeout_seconds), f"tracking server {shown}"
        )
    elif scheme in DATABASES:
        if parts.hostname:  # without one the driver's own environment names it
            address = (parts.hostname, port or DATABASES[scheme])
            _within(
                timeout_seconds,
                lambda: socket.create_connection(address, timeout_seconds).close(),
                f"tracking database {shown}",
            )
    else:
        kind = (
            "is a folder, which this MLflow refuses"
            if scheme in ("", "file")
            else f"has the unknown scheme {scheme!r}"
        )
        raise ValueError(f"tracking_uri {shown} {kind}; allowed: {ALLOWED}")


def sqlite_path(uri: str) -> Path:
    """Return the file that a sqlite URI names."""
    path = uri.partition(":///")[2].partition("?")[0]
    if path in ("", ":memory:"):
        raise ValueError(f"tracking_uri {redacted(uri)} names no file; allowed: {ALLOWED}")
    return Path(path).absolute()


def _check_sqlite(uri: str, timeout_seconds: float) -> None:
    path = sqlite_path(uri)
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()  # the journal lies beside the database
        if path.exists():
            path.open("r+b").close()  # SQLite itself opens a read-only file without complaint
            with closing(
                sqlite3.connect(
                    f"{path.as_uri()}?mode=rw",
                    uri=True,
                    timeout=timeout_seconds,
                    isolation_level=None,
                )
            ) as database:
                database.execute("BEGIN IMMEDIATE")  # takes the write lock and changes nothing
    except (OSError, sqlite3.Error) as error:
        raise ValueError(
            f"tracking database {path} cannot be written ({error}); choose a writable place with --tracking-uri"
        ) from None


def _probe_server(uri: str, timeout_seconds: float) -> None:
    import requests  # arrives with MLflow, and reads the same proxy and certificate settings

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    answer = requests.get(
        f"{uri.rstrip('/')}/health", timeout=timeout_seconds, verify=verify, allow_redirects=False
    )
    if (
        answer.status_code == 404 or answer.status_code >= 500
    ):  # 401, 403 and redirects are left to the first real request
        raise OSError(f"status {answer.status_code} for /health")


def _within(timeout_seconds: float, probe: Callable[[], None], what: str) -> None:
    """Run a probe under a hard limit (name resolution and slow answers know none); ValueError where it fails or takes longer."""
    outcome: list[str] = []

    def run() -> None:
        try:
            probe()
            outcome.append("")
        except (
            Exception
        ) as error:  # its text may hold the URI with the login, so only its kind is shown
            outcome.append(str(error) if type(error) is OSError else type(error).__name__)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_seconds)
    reason = outcome[0] if outcome else "no answer"
    if reason:
        raise NoAnswerError(
            f"{what} gives no good answer within {timeout_seconds:g} s ({reason}); start it or correct --tracking-uri"
        )


def login_to_environment(uri: str) -> str:
    """Move the login of a server's URI to where MLflow reads it, so that no message, artifact URI or tag can show it."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
