"""Temporary folders: removed at the end of a block, and by the next start after a kill.

A process holds a lock on a file in its folder. The kernel drops the lock with the process, however
it ends, so a folder whose lock is free is left over. Folders without that file belong to others,
whatever their name.
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

PREFIX = "sat_ray-"
LOCK = "driver.lock"


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[str]:
    """Yield a new folder that only this user may enter, and remove it at the end.

    Folders that killed processes of this user left are removed first. parent: where to make it, the
    system's folder for temporary files by default. PermissionError where others may enter it.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    # a short name: Ray's unix sockets lie inside, and their paths may have 107 bytes
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    if not is_private_folder(folder):  # a file system without owners and modes
        folder.rmdir()
        raise PermissionError(
            f"{parent} makes folders that others may enter; set TMPDIR to a folder on a local disk"
        )
    try:
        with open(folder / f"{LOCK}.new", "w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # renamed only now: a lock file in its place was never without its lock
            os.rename(handle.name, folder / LOCK)
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_private_folder(folder: Path) -> bool:
    """Say whether a path is a folder, and no link, that only this user owns and may enter."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the temporary folders of this user whose process is gone and return them.

    What cannot be removed stays.
    """
    removed = []
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        # another start is removing it, or its process lives: BlockingIOError
        with contextlib.suppress(OSError):
            if is_private_folder(lock.parent):
                with open(lock) as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(lock.parent)
                removed.append(lock.parent)
    return removed
