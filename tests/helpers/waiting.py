"""Wait for what happens, however slow the machine is."""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")
PATIENCE_SECONDS = 600.0  # half of what pytest allows a test


def until(
    look: Callable[[], Answer],
    *,
    what: str,
    seconds: float = PATIENCE_SECONDS,
    pause: float = 0.02,
) -> Answer:
    """Return the first true answer; AssertionError names what did not come.

    pause: seconds between two looks.
    """
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(pause)
    return answer


def await_answer(address: str, server: "subprocess.Popen[bytes]", *, log: Path) -> None:
    """Wait until an HTTP server answers, with whatever status; show its log where it ends."""

    def look() -> bool:
        assert server.poll() is None, log.read_text()
        return answers(address, any_status=True)

    until(look, what=address, seconds=180, pause=0.5)


def answers(address: str, *, any_status: bool = False) -> bool:
    """Return whether an HTTP server answers. any_status: with an error, too."""
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except urllib.error.HTTPError:
        return any_status
    except OSError:
        return False
    return True
