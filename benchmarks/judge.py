"""Run AutoAttack on the images that a finished sweep counts as robust under its strong attack.

AutoAttack (Croce & Hein 2020) runs at its published budgets, in the code of torchattacks: APGD on
cross-entropy and targeted APGD on DLR, 100 steps, 9 targets; with --standard targeted FAB and
Square as well. Only our survivors are attacked, because only they can be too many. The share of all
images that AutoAttack breaks among them is the most by which our strong number can be above
AutoAttack's.

  python benchmarks/judge.py runs/digits    every row: an hour or more on one core for 50 rows
  python benchmarks/judge.py runs/digits --seeds 0 --json judge.json

Figures: rows (strong_robust_accuracy, after_autoattack) and largest_excess_in_points.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import common
import pyarrow.parquet as pq
import torch
from agreement import FULL, autoattack

from sat_ray.checkpoint import load_model
from sat_ray.data.shards.reading import read_split
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.storage.store import Storage
from sat_ray.sweep.config.stored import stored_config
from sat_ray.sweep.plan.datasets import dataset_uri

GRADIENT_ATTACKS = replace(FULL, fab=False, queries=0)


def survivors(folder: Path, row: dict[str, Any], images: Split) -> Split:
    """Return the test images that a row's strong number counts as robust."""
    table = pq.read_table(folder / "outcomes" / "strong" / Path(row["strong_outcomes"]).name)
    return images.with_ids(robust_image_ids(table))


def judged(folder: Path, row: dict[str, Any], images: Split, *, standard: bool) -> dict[str, Any]:
    """Attack the survivors of one row; return its strong number and the number after AutoAttack."""
    config = stored_config(Storage.at(str(folder)))
    left = survivors(folder, row, images)
    began = perf_counter()
    kept = autoattack(
        load_model(row["checkpoint"]),
        left,
        config.threat_model,
        FULL if standard else GRADIENT_ATTACKS,
    )
    return {
        "configuration": row["configuration"],
        "seed": row["seed"],
        "n": row["n"],
        "strong_robust_accuracy": row["strong_robust_accuracy"],
        "after_autoattack": len(kept) / row["n"],
        "excess_in_points": 100 * (len(left) - len(kept)) / row["n"],
        "seconds": perf_counter() - began,
    }


def main() -> None:
    """Run AutoAttack on the rows and print each result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", type=Path, help="folder of a finished sweep, such as runs/digits")
    parser.add_argument("--seeds", type=int, nargs="*", help="only the rows of these seeds")
    parser.add_argument("--standard", action="store_true", help="add FAB and Square")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    board = json.loads((given.sweep / "leaderboard.json").read_text())
    config = stored_config(Storage.at(str(given.sweep)))
    uri = dataset_uri(config, Storage.at(str(given.sweep.resolve().parent)))
    images = read_split(Storage.at(uri), "test")
    rows = []
    for row in board["rows"]:
        if row["strong_robust_accuracy"] is None or (
            given.seeds and row["seed"] not in given.seeds
        ):
            continue
        rows.append(judged(given.sweep, row, images, standard=given.standard))
        print(
            "{configuration}, seed {seed}: {strong_robust_accuracy:.1%} strong, at most "
            "{excess_in_points:.2f} points above AutoAttack".format(**rows[-1]),
            flush=True,
        )
    if not rows:
        parser.error(f"{given.sweep} has no row with a strong number and one of these seeds")
    largest = max(row["excess_in_points"] for row in rows)
    figures = {"largest_excess_in_points": largest, "rows_judged": len(rows)}
    common.finish(
        "judge: AutoAttack on what the strong number counts",
        figures,
        {"rows": rows},
        common.machine(),
        path=given.json,
    )


if __name__ == "__main__":
    main()
