"""Wait for what happens, however slow the machine is."""

import time
from collections.abc import Callable
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
