"""Where the repository and its tests lie, and how another process finds them."""

import os
import re
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[\w,-]+\])?==(?P<version>[\w.!+-]+)(?P<marker> ;[^\\]*)? \\"
)


def paths_of_tests() -> str:
    """Return a PYTHONPATH with which a process imports
    the project and the tests that this one has.
    """
    tests = [path for path in sys.path if Path(path).is_relative_to(TESTS)]
    return os.pathsep.join([*tests, str(ROOT)])


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
