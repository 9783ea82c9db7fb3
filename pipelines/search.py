#!/usr/bin/env python3
"""Search activation and alpha with Ray Tune.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.run import main, only

if __name__ == "__main__":
    sys.exit(main(only("search"), about=__doc__))
