#!/usr/bin/env python3
"""The command `sat-ray compare` as a script: python pipelines/compare.py --help."""

import sys

from sat_ray.integrations.command_line.compare import main

if __name__ == "__main__":
    sys.exit(main())
