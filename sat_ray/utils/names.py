"""Errors that teach: an unknown name is answered with the closest known ones."""

import difflib
import unicodedata
from collections.abc import Collection

RENAMED = {
    "evaluation.lanes": "evaluation.slots",
    "lanes": "slots",
    "search.seed": "search.seeds",
    "training.sentinel_every": "training.guard_every",
    "training.sentinel_images": "training.guard_images",
    "training.sentinel_limit": "training.guard_limit",
    "float32-compiled": "float32",
    "bf16-compiled": "bf16",
    "fp16-compiled": "fp16",
}
"""Fields and values of an earlier version, and what takes their place now."""
# Unicode's controls, formats, and what begins a line
INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def printable(text: str, *, kept: str = "") -> str:
    """Return a text of which a terminal shows every character, and obeys none.

    Escapes and other control characters, changes of direction and halves of characters become
    \\x1b, \\u202e and the like, as Python writes them. kept: characters that stay, for example line
    ends in a text of several lines.
    """
    return "".join(
        one if one in kept or unicodedata.category(one) not in INVISIBLE else _escaped(one)
        for one in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def suggest(name: str, known: Collection[str], *, otherwise: str = "") -> str:
    """Return `did you mean a or b?` for near misses, else the list of what is known.

    otherwise: said instead of a list that would be too long.
    """
    close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return otherwise or f"choose {', '.join(sorted(known))}"


def replacement(name: str, known: Collection[str]) -> str:
    """Return the known value that took the place of a removed one; "" where there is none."""
    found = RENAMED.get(name, "")
    return found if found in known else ""


def check_name(name: str, known: Collection[str], *, field: str) -> str:
    """Return `name` if it is known.

    Raises ValueError naming the field, the value and the closest names.
    """
    if not isinstance(name, str) or name not in known:
        if today := replacement(str(name), known):
            raise ValueError(f"{field} {name!r} was removed; use {today}")
        raise ValueError(f"{field} {name!r} is unknown; {suggest(str(name), known)}")
    return name
