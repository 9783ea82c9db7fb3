"""The session folder of a private Ray: made at the start, removed at the end, and by the next start where the driver was killed.

A driver holds a lock on a file in its folder. The kernel drops the lock with the process, however it ends, so a folder whose lock can be
taken belongs to nobody. Folders without that file are not ours, whatever their name.

Ray opens its own folder, sockets and all, to every user of the machine. So Ray's folder lies inside
one that only this user may enter.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX, LOCK = "sat_ray-", "driver.lock"
RAY, GROUPS = "r", "g"  # inside: Ray's own folder, and where the process groups of trainings meet
SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"  # Ray's longest name
LONGEST_SOCKET = 107  # bytes of a socket's path, by the operating system


@contextmanager
def session_folder(parent: Path | None = None) -> Iterator[str]:
    """Yield a new folder that only this user may enter, with RAY and GROUPS inside, and remove it at the end.

    Folders that killed drivers of this user left go first. parent: where to make it, the system's
    folder for temporary files by default. PermissionError where others may enter it.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    folder = Path(
        tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    )  # short: Ray's unix sockets are here, and their names may have 107 bytes
    if not is_private_folder(folder):  # a file system without owners and modes
        folder.rmdir()
        raise PermissionError(
            f"{parent} makes folders that others may enter; set TMPDIR to a folder on a local disk"
        )
    for name in (RAY, GROUPS):
        (folder / name).mkdir(mode=0o700)
    with open(folder / f"{LOCK}.new", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.rename(
            handle.name, folder / LOCK
        )  # only now: a lock file in its place was never without its lock
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def is_private_folder(folder: Path) -> bool:
    """Say whether a folder, and no link to one, belongs to this user, and nobody else may enter it."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def require_short(parent: Path) -> None:
    """Raise ValueError where Ray's unix sockets in a folder would have longer paths than allowed."""
    length = len(os.fsencode(parent / f"{PREFIX}12345678" / SOCKET))
    if length > LONGEST_SOCKET:
        raise ValueError(
            f"the path of the folder for temporary files is {length - LONGEST_SOCKET} bytes too long, got "
            f"{parent}: Ray's unix sockets lie in it, and a socket's path may have {LONGEST_SOCKET} bytes; "
            "set TMPDIR to a folder with a shorter path, such as /tmp"
        )


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the session folders of this user whose driver is gone and return them; what cannot be removed stays."""
    removed = []
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(
            OSError
        ):  # another start is removing it, or its driver lives: BlockingIOError
            if is_private_folder(lock.parent):
                with open(lock) as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent)
                removed.append(lock.parent)
    return removed
