#!/usr/bin/env python3
"""Judge the best models: robustness cards on the validation split, PASS or FLAG, until one of the candidates passes.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys

from sat_ray.integrations.command_line.driver import main, only

if __name__ == "__main__":
    sys.exit(main(only("card"), about=__doc__))
