#!/usr/bin/env python3
"""Write the leaderboard, the figures and report.html from what is committed.

Runs this stage alone; what it needs must have been run before with the same recipe and options.
"""

import sys

from sat_ray.integrations.command_line.driver import main, only

if __name__ == "__main__":
    sys.exit(main(only("report"), about=__doc__))
