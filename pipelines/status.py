#!/usr/bin/env python3
"""The command `sat-ray status` as a script: python pipelines/status.py --help."""

import sys

from sat_ray.integrations.command_line.status import main

if __name__ == "__main__":
    sys.exit(main())
