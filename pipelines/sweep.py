#!/usr/bin/env python3
"""Search, train, evaluate, judge and report: the whole pipeline, from images to a leaderboard.

python pipelines/sweep.py                                     the digits recipe on this machine, results in ./runs/digits
python pipelines/sweep.py digits --training.epochs 10         override any field of the recipe
ray job submit --working-dir . -- python pipelines/sweep.py   the same on a cluster; storage from SAT_RAY_STORAGE
"""

import sys

from sat_ray.integrations import stages
from sat_ray.integrations.command_line.driver import Driver, main
from sat_ray.integrations.command_line.parsing import Command


def sweep(command: Command) -> None:
    """Run the DAG. Every stage is a Ray task that waits for its inputs; the driver alone writes MLflow, last, from committed records."""
    with Driver(command) as driver:
        data = driver.stage(stages.prepare)
        finalists = driver.stage(stages.search, data)
        models = driver.stage(stages.train, data, finalists)
        cards = driver.stage(stages.card, data, models)
        outcomes = driver.stage(stages.evaluate, data, models)
        board = driver.report(data, models, cards, outcomes)
        driver.register(board)


if __name__ == "__main__":
    sys.exit(main(sweep, about=__doc__))
