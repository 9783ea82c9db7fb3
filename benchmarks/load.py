"""Measure what many trials and many outcome shards cost the driver.

Two real sweeps train and attack a tiny network, so that nearly all of the time is bookkeeping.

    tracking_share          sweep of many trials: seconds in calls of MLflow / wall time
    trials_per_second       over the search stage
    trials_at_once          the most trials that trained at one time
    shard_seconds_ratio     sweep of many shards: time per shard in its last tenth / in its first
                            tenth; 1 means linear
    driver_kib_per_shard    growth of the driver's memory (PSS) over the evaluation / shards
    stage_kib_per_shard     the same of the process of the stage
    merge_seconds_ratio     merging all shards / merging a tenth of them, per shard
    merge_kib_per_shard     growth of the peak memory of merging

200 trials and 20,000 shards of one image; --quick: 40 and 2,000. The trials run on a Ray that is
configured with more CPUs than the machine has, so that as many train at once as --at-once says
(each takes some 0.3 GiB). The shards run on a private Ray, as with `make sweep`.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from pipeline import MemoryWatch, records_of
from watched_sweep import Sample, crowded_ray, run_sweep

TRIVIAL = shlex.split(
    "digits_smoke --model.name load_parts:net --search.pairs --search.rungs 1 --final.seeds 0 "
    "--training.epochs 1 --training.warmup-epochs 0 "
    "--evaluation.steps 1 --evaluation.step-size 64/255 "
    "--card.images 16 --card.cascade-steps 2 --card.cascade-queries 10 "
    "--resources.train-workers 1"
)


def records(root: Path, stage: str) -> list[dict[str, Any]]:
    """Return the records of a stage of the only sweep, oldest first."""
    (folder,) = root.glob("digits_smoke*")
    return sorted(
        (record for record in records_of(folder) if record["stage"] == stage),
        key=lambda record: record["created"],
    )


def most_at_once(done: list[dict[str, Any]]) -> int:
    """Return how many units of work overlapped at most;
    a record says when it ended and how long it took.
    """
    edges = sorted(
        [(one["created"] - one["seconds"], 1) for one in done]
        + [(one["created"], -1) for one in done]
    )
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


def measure_trials(count: int, at_once: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a sweep whose search has `count` trials and return its figures and details."""
    alphas = ",".join(f"{1 + number / 100:g}" for number in range(count))
    choice = [*TRIVIAL, "--data.dataset", "load_parts:test_64"]
    choice += ["--search.activations", f"parametric_softplus:{alphas}"]
    with (
        tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as folder,
        crowded_ray(at_once) as variables,
    ):
        with MemoryWatch(os.getpid()) as memory:
            ran = run_sweep(choice, Path(folder), **variables)
        done = records(Path(folder), "search")
    assert len(done) == count, f"{len(done)} trials of {count}"
    drivers = [sample.driver for sample in ran.samples]
    figures = {
        "tracking_share": ran.tracking_share(),
        "trials_per_second": count / ran.stage_seconds()["search"],
        "trials_at_once": most_at_once(done),
    }
    details = {
        "trials": count,
        "wall_seconds": ran.wall,
        "stage_seconds": ran.stage_seconds(),
        "tracker_seconds": ran.tracker["seconds"],
        "tracker_calls": ran.tracker["calls"],
        "driver_mib": max(drivers) / 1024,
        "peak_pss_gib": memory.peak_pss / 2**30,
    }
    return figures, details


def measure_shards(count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a sweep whose evaluation has `count` shards, run it again when all is committed,
    and merge parts of it alone.
    """
    choice = [*TRIVIAL, "--data.dataset", f"load_parts:test_{count}"]
    choice += shlex.split(
        "--search.activations relu --evaluation.shard-size 1 --evaluation.slots 1 "
        "--resources.cpus-per-evaluation 1"
    )
    with tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as folder:
        ran = run_sweep(choice, Path(folder))
        ends = [record["created"] for record in records(Path(folder), "evaluate")]
        assert len(ends) == count, f"{len(ends)} shards of {count}"
        again = run_sweep(choice, Path(folder))
        merges = {
            size: merge_alone(Path(folder), size) for size in (count // 10, count // 2, count)
        }
    tenth = count // 10
    pace = {
        end: (ends[end - 1] - ends[end - tenth]) / (tenth - 1) for end in (tenth, count // 2, count)
    }
    small, whole = merges[tenth], merges[count]
    figures = {
        "shard_seconds_ratio": pace[count] / pace[tenth],
        "driver_kib_per_shard": ran.growth("driver", count),
        "stage_kib_per_shard": ran.growth("stage", count),
        "merge_seconds_ratio": (whole["seconds"] / count) / (small["seconds"] / tenth),
        "merge_kib_per_shard": (whole["peak_kib"] - small["peak_kib"]) / (count - tenth),
    }
    details = {
        "shards": count,
        "wall_seconds": ran.wall,
        "wall_seconds_again": again.wall,
        "stage_seconds": ran.stage_seconds(),
        "seconds_per_shard": {f"up to {end}": seconds for end, seconds in pace.items()},
        "driver_mib": {f"at {size}": _at(ran.samples, size) for size in (tenth, count // 2, count)},
        "driver_mib_again": max(sample.driver for sample in again.samples) / 1024,
        "stage_mib": max(sample.stage for sample in ran.samples) / 1024,
        "merge": {f"of {size}": merge for size, merge in merges.items()},
        "tracker_share": ran.tracking_share(),
    }
    return figures, details


def _at(samples: list[Sample], shards: int) -> float:
    """Return the driver's memory in MiB when so many shards had been committed."""
    return (
        next((sample.driver for sample in samples if sample.shards >= shards), float("nan")) / 1024
    )


MERGE = """
import json, sys, time
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.tasks import EVALUATE
from sat_ray.sweep.records.store import Records
from sat_ray.storage.store import Storage
from sat_ray.integrations.stages import Dataset
from sat_ray.data.shards.reading import image_ids

def status(field):
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) for line in lines if line.startswith(field))

records, size, data = Records(Storage.at(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
expected = image_ids(Storage(data), "test").numpy()
first_row = {record.key: record.inputs["rows"][0] for record in records.each(EVALUATE)}

def merge(count, name):
    chosen = (records.find(EVALUATE, key) for key, row in first_row.items() if row < count)
    merge_outcomes(chosen, expected[:count], records, name=name)

merge(1, "warm-up")
before, started = status("VmRSS"), time.perf_counter()
merge(size, "merged")
print(json.dumps({"seconds": time.perf_counter() - started, "peak_kib": status("VmHWM") - before}))
"""


def merge_alone(root: Path, size: int) -> dict[str, float]:
    """Merge the first `size` shards of a sweep in a process of its own;
    return its seconds and the growth of its memory.
    """
    (folder,), (data,) = root.glob("digits_smoke*"), (root / "data").iterdir()
    pool = {
        "ARROW_DEFAULT_MEMORY_POOL": "system"
    }  # Arrow's own allocator keeps some 30 MB, however small the work
    command = [sys.executable, "-c", MERGE, str(folder), str(size), str(data)]
    done = subprocess.run(
        command,
        env=common.environment(OMP_NUM_THREADS="1", **pool),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at-once",
        type=int,
        default=16,
        metavar="N",
        help="trials that may train at one time; default 16",
    )
    parser.add_argument("--only", choices=("trials", "shards"), help="measure this part alone")


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__, smoke=False, more=_own_options)
    about = common.machine()
    trials, shards = (40, 2000) if options.quick else (200, 20_000)
    figures, details = dict[str, Any](), dict[str, Any]()
    for part, measure in (
        ("trials", lambda: measure_trials(trials, options.at_once)),
        ("shards", lambda: measure_shards(shards)),
    ):
        if options.only in (None, part):
            found, more = measure()
            figures |= found
            details[part] = more
    common.finish("load: many trials, many shards", figures, details, about, path=options.json)


if __name__ == "__main__":
    main()
