"""Read the lock files."""

import re

from repository import ROOT

REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[\w,-]+\])?==(?P<version>[\w.!+-]+)(?P<marker> ;[^\\]*)? \\"
)


def locked(name: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of every package of a lock;
    AssertionError on a line that is none of what a lock holds.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    hashes: list[str] = []
    for line in (ROOT / name).read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.startswith("    --hash="):
            hashes.append(line.strip().removesuffix(" \\"))
            continue
        parts = REQUIREMENT.fullmatch(line)
        assert parts is not None, f"{name}: {line!r} has no exact version, or no hash follows it"
        hashes = []
        found[parts["name"]] = parts["version"], hashes
    return found
