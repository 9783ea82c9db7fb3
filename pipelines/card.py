#!/usr/bin/env python3
"""Judge the best models: robustness cards on the validation split, until one candidate passes.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.run import main, only

if __name__ == "__main__":
    sys.exit(main(only("card"), about=__doc__))
