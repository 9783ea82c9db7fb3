"""Errors that teach: an unknown name is answered with the closest known ones."""

import difflib
import unicodedata
from collections.abc import Collection

INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # Unicode's controls, formats, and what begins a line


def printable(text: str) -> str:
    """Return a text of which a terminal shows every character: escapes, control characters, changes of direction and half characters
    become \\x1b, \\u202e and the like, as Python writes them."""
    return "".join(one if unicodedata.category(one) not in INVISIBLE else one.encode("unicode_escape").decode("ascii") for one in text)


def suggest(name: str, known: Collection[str]) -> str:
    """Return `; did you mean a or b?` for near misses, else the list of what is known."""
    close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(sorted(known))}"


def check_name(name: str, known: Collection[str], *, field: str) -> str:
    """Return `name` if it is known; raise ValueError naming the field, the value and the closest names."""
    if name not in known:
        raise ValueError(f"{field} {name!r} is unknown; {suggest(str(name), known)}")
    return name
