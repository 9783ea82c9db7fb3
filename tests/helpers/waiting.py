"""Wait for what happens, however slow the machine is."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")
PATIENCE_SECONDS = 600.0  # half of what pytest allows a test


def until(look: Callable[[], Answer], *, what: str) -> Answer:
    """Return the first true answer; AssertionError names what did not come."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:g} s"
        time.sleep(0.02)
    return answer
