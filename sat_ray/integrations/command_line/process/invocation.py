"""How a command was started, and how another one is started the same way: what messages tell the user to run."""

import shlex
import sys
from collections.abc import Sequence

CONSOLE = "sat-ray"


def invocation(name: str) -> list[str]:
    """Return the words that start a command: `sat-ray NAME`, or `python pipelines/NAME.py`."""
    by_console = sys.argv[0].partition(" ")[0] == CONSOLE  # `main` writes it there
    return [CONSOLE, name] if by_console else ["python", f"pipelines/{name}.py"]


def spelled(name: str, words: Sequence[str] = ()) -> str:
    """Return a command with its words, fit for a shell."""
    return shlex.join([*invocation(name), *words])
