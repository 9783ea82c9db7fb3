"""Note which files of a user a block of code reads, as a model may do whenever it computes.

What such a file holds is in no digest: a result would be taken for that of the changed file too.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

CODE = (".py", ".pyc", ".so")
# of the system and of Python with its packages
OTHERS = ("/proc", "/sys", "/dev", "/etc", sys.prefix, sys.base_prefix)
SHOWN = 3
_at_work: dict[int, "FilesRead"] = {}  # by thread


class FilesRead:
    """The files read in the blocks of `noted`, any number of them.

    Only those of a block's own thread; code, files of installed packages and of the system are left
    out.
    """

    def __init__(self) -> None:
        self.found: dict[str, None] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the files that this thread reads in a block."""
        _listen()  # once: Python never lets go of what listens
        _at_work[threading.get_ident()] = self
        try:
            yield
        finally:
            _at_work.pop(threading.get_ident(), None)

    def warning(self, what: str) -> str:
        """Return a sentence that names the files, "" where there are none.

        what: the name of what reads them.
        """
        names = [path for path in self.found if not _is_left_out(path)]
        if not names:
            return ""
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        return (
            f"{what} reads {', '.join(names[:SHOWN])}{more} while it computes: no digest covers a "
            "file, so results from before a change of it would be reused; hold its values in "
            "parameters or buffers"
        )


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _at_work:
        return
    listener = _at_work.get(threading.get_ident())
    path, _, flags = arguments
    if listener is None or not isinstance(path, (str, bytes)):
        return
    if flags & os.O_ACCMODE == os.O_RDONLY:
        listener.found[os.path.abspath(os.fsdecode(path))] = None


@cache
def _listen() -> None:
    sys.addaudithook(_note)


def _is_left_out(path: str) -> bool:
    file = Path(path)
    in_packages = "site-packages" in file.parts or "dist-packages" in file.parts
    others = any(file.is_relative_to(folder) for folder in OTHERS)
    return file.suffix in CODE or in_packages or others or not file.is_file()
