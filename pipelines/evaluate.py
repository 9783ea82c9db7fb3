#!/usr/bin/env python3
"""Measure robust accuracy: PGD over (model, shard of test images) as Ray tasks.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys

from pipelines.driver import main, only

if __name__ == "__main__":
    sys.exit(main(only("evaluate"), about=__doc__))
