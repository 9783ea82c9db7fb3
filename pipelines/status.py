#!/usr/bin/env python3
"""Show where a sweep stands, from its storage alone, while it runs or after it stopped.

python pipelines/status.py                                   every sweep in ./runs, one line each
python pipelines/status.py digits                            one sweep: stages, best, cost, next
python pipelines/status.py digits --storage s3://bucket/x    the same from another storage
python pipelines/status.py digits --json                     the same for programs
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.status import main

if __name__ == "__main__":
    sys.exit(main(about=__doc__))
