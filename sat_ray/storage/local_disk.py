"""Files of a local disk that are whole after a crash: temporary files, flushed folders, leftovers.

A writer holds a lock on its temporary file, so that a file that a killed writer left can be told
from one that is being written.
"""

import contextlib
import errno
import fcntl
import io
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp-"
ABANDONED_SECONDS = 60.0  # the writer of a younger temporary file may be about to lock it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
LASTING = (*NO_ROOM, errno.EROFS)  # a disk that is full or read-only


class NotAFileError(OSError):
    """A path is no regular file, or its file is larger than any file of its kind."""


def open_file(path: str, *, buffer: int = io.DEFAULT_BUFFER_SIZE) -> BinaryIO:
    """Open a file to read it at any place.

    buffer: bytes. Raises NotAFileError for a pipe, a device or a folder, and waits for none.
    """
    # Without O_NONBLOCK, opening a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotAFileError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    return open(descriptor, "rb", buffering=buffer)


@contextlib.contextmanager
def temporary_file(final: str, source: BinaryIO) -> Iterator[str]:
    """Copy an open file to a temporary one beside `final`, for a block that puts it in place.

    Then flush the folder, and leave no temporary file.
    """
    folder = os.path.dirname(final)
    make_folders(folder)
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as stream:
            # On a disk without locks, `remove_abandoned` never removes anything.
            with contextlib.suppress(OSError):
                fcntl.flock(stream, fcntl.LOCK_EX)
            shutil.copyfileobj(source, stream)
            stream.flush()
            os.fsync(stream.fileno())
            yield temporary
    except OSError as error:
        if error.filename is None:  # a write to a full disk names none
            error.filename = final
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):  # it was renamed
            os.unlink(temporary)
    flush(folder)


def make_folders(folder: str) -> None:
    """Make a folder and those above it, each flushed into the one that holds it."""
    for one in reversed(missing_folders(folder)):
        os.makedirs(one, exist_ok=True)
        flush(os.path.dirname(one))


def missing_folders(folder: str) -> list[str]:
    """Return the folder and those above it that are not there, the innermost first."""
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def flush(path: str | Path) -> None:
    """Write a file, or the names in a folder, to the disk.

    Until then a power failure may lose a file of the folder that was linked or renamed.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network disks do not flush folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def remove_abandoned(folder: str) -> list[str]:
    """Remove the temporary files that killed writers left below a folder and return their paths.

    A file stays while its writer lives, and while it is younger than ABANDONED_SECONDS.
    """
    found = Path(folder).rglob(f"{TEMPORARY}*")
    return [str(path) for path in found if _remove_if_abandoned(path)]


def _remove_if_abandoned(path: Path) -> bool:
    """Remove a temporary file whose writer is gone; say whether it was one."""
    with contextlib.suppress(OSError):  # it is gone, or its writer holds the lock
        if time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
            return False
        with open(path, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        return True
    return False


def is_lasting(error: BaseException) -> bool:
    """Say whether a write that failed would fail again: the disk is full, or read-only."""
    return isinstance(error, OSError) and error.errno in LASTING


def in_words(error: BaseException) -> str:
    """Return an error's text; of a file that a disk has no room for, what to do."""
    if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename:
        return (
            f"no room is left for {error.filename} ({error.strerror}); make room on that disk and "
            "give the same command again: it goes on from what is committed"
        )
    return str(error)
