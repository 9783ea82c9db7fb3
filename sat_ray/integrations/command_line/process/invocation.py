"""How this command was started, and how a message spells another one: in the same way."""

import os
import shlex
import sys
from collections.abc import Sequence

CONSOLE = "sat-ray"
_by_console = False


def note_console() -> None:
    """Note that this process was started as `sat-ray`, which its script cannot see."""
    global _by_console
    _by_console = True


def by_console() -> bool:
    """Return whether this process was started as `sat-ray`."""
    return _by_console


def invocation(name: str) -> list[str]:
    """Return the words that start a command: `sat-ray NAME`, or `python pipelines/NAME.py`."""
    return [CONSOLE, name] if _by_console else ["python", f"pipelines/{name}.py"]


def spelled(name: str, words: Sequence[str] = ()) -> str:
    """Return a command with its words, fit for a shell."""
    return shlex.join([*invocation(name), *words])


def program(*words: str) -> str:
    """Return how this command was started, for its usage line."""
    file = os.path.basename(sys.argv[0])
    started = f"{CONSOLE} {file.removesuffix('.py')}" if _by_console else file
    return " ".join([started, *words])
