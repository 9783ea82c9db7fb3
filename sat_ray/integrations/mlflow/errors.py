"""Errors of MLflow: which may pass, which mean a full disk, and what to show of them."""

import errno
import os

from sat_ray.storage.outages import is_away
from sat_ray.utils.import_string import first_line

OF_SQLITE = "(sqlite3."  # in the text of every error of SQLite, also through a server
LOCKED = "locked"  # in SQLite's words: a later attempt may succeed
FULL = ("database or disk is full", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
OF_FILES = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


class NoAnswerError(ValueError):
    """The tracker does not answer, or answers that it cannot now."""


class TrackingError(ValueError):
    """MLflow could not be written, though everything else is done."""


def is_full(error: BaseException) -> bool:
    """Say whether a disk that MLflow writes to has no room left, here or on its server."""
    return any(words in str(error) for words in FULL)


def is_outage(error: BaseException) -> bool:
    """Say whether a call to a tracker failed for a reason that may pass.

    Nothing answered, the server could not, or a disk is full. MLflow gives the same status to what
    SQLite refuses for good, so SQLite's words decide there.
    """
    if is_full(error):
        return True
    if OF_SQLITE in str(error):
        return LOCKED in str(error)
    status = getattr(error, "get_http_status_code", None)  # what MLflow raises has it
    if status:
        return int(status()) >= 500
    if isinstance(error, OF_FILES):
        return False
    if isinstance(error, (NoAnswerError, OSError)):  # what requests raises is an OSError
        return True
    return any(is_away(one) for one in (error, error.__context__) if one)  # of an S3 artifact store


def reason_of(error: BaseException) -> str:
    """Return the line of an error's text that says most: of MLflow's errors SQLite's own."""
    lines = (line for line in str(error).splitlines() if OF_SQLITE in line)
    return next(lines, first_line(error))
