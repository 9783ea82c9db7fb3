#!/usr/bin/env python3
"""The command `sat-ray evaluate` as a script: python pipelines/evaluate.py --help."""

import sys

from sat_ray.integrations.command_line.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
