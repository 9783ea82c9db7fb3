#!/usr/bin/env python3
"""Measure robust accuracy: the evaluate stage of a sweep, or with --model a model made elsewhere.

Without --model it runs this stage of a sweep alone; what it needs must have been run before with
the same recipe and options.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.evaluate import main

if __name__ == "__main__":
    sys.exit(main(about=__doc__))
