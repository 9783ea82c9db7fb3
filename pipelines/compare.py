#!/usr/bin/env python3
"""Compare models evaluated on the same images: paired differences, classes, and flipped images.

Each OUTCOMES is a Parquet file of outcomes, or a folder with the parts of one model's, local or
s3://: what the evaluate stage leaves as STORAGE/SWEEP/outcomes/MODEL.parquet. The first is compared
with each of the others.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.compare import main

if __name__ == "__main__":
    sys.exit(main(about=__doc__))
