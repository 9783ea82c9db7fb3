#!/usr/bin/env python3
"""Train the finalists: the best alpha of each activation and the Table 1 pairs, every seed, data-parallel on Ray Train.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys

from sat_ray.integrations.command_line.driver import main, only

if __name__ == "__main__":
    sys.exit(main(only("train"), about=__doc__))
