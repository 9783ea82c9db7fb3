"""Errors that teach: an unknown name is answered with the closest known ones."""

import difflib
from collections.abc import Collection


def suggest(name: str, known: Collection[str]) -> str:
    """Return `; did you mean a or b?` for near misses, else the list of what is known."""
    close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(sorted(known))}"


def check_name(name: str, known: Collection[str], *, field: str) -> str:
    """Return `name` if it is known; raise ValueError naming the field, the value and the closest names."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{field} {name!r} is unknown; {suggest(str(name), known)}")
    return name
