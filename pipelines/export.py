#!/usr/bin/env python3
"""The command `sat-ray export` as a script: python pipelines/export.py --help."""

import sys

from sat_ray.integrations.command_line.export import main

if __name__ == "__main__":
    sys.exit(main())
