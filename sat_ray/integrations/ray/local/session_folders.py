"""The session folder of a private Ray, inside a temporary folder that only this user may enter.

Ray opens its own folder, sockets and all, to every user of the machine.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sat_ray.integrations.temporary_folders import PREFIX, temporary_folder

RAY = "r"  # inside: Ray's own folder
GROUPS = "g"  # inside: where the process groups of trainings meet
SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"  # Ray's longest name
LONGEST_SOCKET = 107  # bytes of a socket's path, by the operating system


@contextmanager
def session_folder(parent: Path | None = None) -> Iterator[str]:
    """Yield a new temporary folder with RAY and GROUPS inside. parent: see `temporary_folder`."""
    with temporary_folder(parent) as folder:
        for name in (RAY, GROUPS):
            Path(folder, name).mkdir(mode=0o700)
        yield folder


def require_short(parent: Path) -> None:
    """Raise ValueError where the paths of Ray's unix sockets in a folder would be too long."""
    length = len(os.fsencode(parent / f"{PREFIX}12345678" / SOCKET))
    if length > LONGEST_SOCKET:
        raise ValueError(
            f"the path of the folder for temporary files is {length - LONGEST_SOCKET} bytes too "
            f"long, got {parent}: Ray's unix sockets lie in it, and a socket's path may have "
            f"{LONGEST_SOCKET} bytes; set TMPDIR to a folder with a shorter path, such as /tmp"
        )
