#!/usr/bin/env python3
"""Turn a dataset into checksummed Parquet shards; sweeps of the same data share them.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys

from sat_ray.integrations.command_line.driver import main, only

if __name__ == "__main__":
    sys.exit(main(only("prepare"), about=__doc__))
