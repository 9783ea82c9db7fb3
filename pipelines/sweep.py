#!/usr/bin/env python3
"""Search, train, evaluate, judge and report: the whole pipeline, from images to a leaderboard.

python pipelines/sweep.py                                the digits recipe, results in ./runs/digits
python pipelines/sweep.py digits --training.epochs 10    override any field of the recipe
ray job submit --working-dir . -- python pipelines/sweep.py      the same on a cluster
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("sat_ray") is None:  # a clone whose package is not installed
    sys.path.append(str(Path(__file__).resolve().parents[1]))

from sat_ray.integrations.command_line.parsing import Command
from sat_ray.integrations.command_line.run import main


def sweep(command: Command) -> None:
    """Run the DAG. Every stage is a Ray task that waits for its inputs.

    The driver alone writes MLflow, last, from committed records.
    """
    from sat_ray.integrations import stages
    from sat_ray.integrations.command_line.driver import Driver

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
