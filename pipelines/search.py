#!/usr/bin/env python3
"""Search activation and alpha with Ray Tune.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys

from sat_ray.integrations.command_line.driver import main, only

if __name__ == "__main__":
    sys.exit(main(only("search"), about=__doc__))
