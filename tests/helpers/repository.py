"""Where the repository and its tests lie, and how another process finds them."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent


def paths_of_tests() -> str:
    """Return a PYTHONPATH with which a process imports
    the project and the tests that this one has.
    """
    tests = [path for path in sys.path if Path(path).is_relative_to(TESTS)]
    return os.pathsep.join([*tests, str(ROOT)])
