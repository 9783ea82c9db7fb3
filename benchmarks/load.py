"""What many trials and many outcome shards cost the driver: two real sweeps of a network too small to matter, so that all is bookkeeping.

    tracking_share            of the sweep of many trials: seconds in calls of MLflow / wall time of the command
    trials_per_second         over the search stage; trials_at_once: the most that trained at one time
    shard_seconds_ratio       of the sweep of many shards: time per shard in its last tenth / in its first tenth; 1 is linear
    driver_kib_per_shard      growth of the driver's memory (PSS) over the evaluation / shards; stage_kib_per_shard: of the stage's process
    merge_seconds_ratio       merging all shards / merging a tenth of them, per shard; merge_kib_per_shard: growth of its peak memory

200 trials and 20,000 shards of one image; --quick: 40 and 2,000. The trials run on a Ray that believes in more CPUs than there are, as many
at once as --at-once says (each takes some 0.3 GiB); the shards on a private Ray, as with `make sweep`.
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import psutil
from pipeline import STAGE_DONE, MemoryWatch

SAMPLE_SECONDS = 1.0
REDIRECTING = ("RAY_ADDRESS", "SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI", "SAT_RAY_NODE_GROUPS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
TRIVIAL = (
    *("digits_smoke", "--model.name", "load_parts:net", "--search.pairs", "--search.rungs", "1", "--final.seeds", "0"),
    *("--training.epochs", "1", "--training.warmup-epochs", "0", "--evaluation.steps", "1", "--evaluation.step-size", "64/255"),
    *("--card.images", "16", "--card.cascade-steps", "2", "--card.cascade-queries", "10", "--resources.train-workers", "1"),
)


@dataclass(frozen=True)
class Sample:
    """The state of a sweep at one time. driver, stage: PSS in KiB of the driver and of the task that is the evaluate stage, 0 if none."""

    seconds: float
    shards: int
    driver: float
    stage: float


@dataclass(frozen=True)
class Ran:
    """One run of the sweep."""

    wall: float
    output: str
    tracker: dict[str, dict[str, float]]
    samples: list[Sample]

    def stage_seconds(self) -> dict[str, float]:
        """Return the wall seconds of each stage, as the driver printed them."""
        return {name: float(seconds) for name, seconds in STAGE_DONE.findall(self.output)}

    def growth(self, part: str, shards: int) -> float:
        """Return by how many KiB per shard the memory of `part` grew over the evaluation: from its first tenth to its last."""
        seen = [sample for sample in self.samples if sample.shards > 0 and getattr(sample, part) > 0]
        early = [getattr(one, part) for one in seen if shards // 10 <= one.shards <= shards // 5]
        late = [getattr(one, part) for one in seen if 9 * shards // 10 <= one.shards]
        return (max(late) - max(early)) / (0.85 * shards) if early and late else float("nan")


def run_sweep(arguments: list[str], root: Path, **environment: str) -> Ran:
    """Run a sweep with its tracker timed and its driver watched. RuntimeError if it fails."""
    clock, log, samples = root / "tracker.json", root / "sweep.log", list[Sample]()
    command = [sys.executable, str(Path(__file__).with_name("timed_sweep.py")), str(clock), *arguments, "--storage", str(root)]
    path = os.pathsep.join(filter(None, [str(common.ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    clean = {name: value for name, value in os.environ.items() if name not in REDIRECTING} | {"PYTHONPATH": path} | environment
    started = time.monotonic()
    with log.open("w") as stream, subprocess.Popen(command, env=clean, stdout=stream, stderr=subprocess.STDOUT) as sweep:
        driver = psutil.Process(sweep.pid)
        while sweep.poll() is None:
            samples.append(_sample(driver, root, time.monotonic() - started))
            time.sleep(SAMPLE_SECONDS)
    wall, output = time.monotonic() - started, log.read_text()
    print(output, flush=True)
    if sweep.returncode:
        raise RuntimeError(f"the sweep ended with exit status {sweep.returncode}")
    return Ran(wall, output, json.loads(clock.read_text()), samples)


def _sample(driver: psutil.Process, root: Path, seconds: float) -> Sample:
    shards = sum(len(os.listdir(folder)) for folder in root.glob("*/state/evaluate"))
    return Sample(seconds, shards, _pss(driver), sum(_pss(one) for one in _titled(driver, "ray::evaluate")))


def _titled(driver: psutil.Process, title: str) -> list[psutil.Process]:
    """Return the descendants with exactly this title."""
    found = []
    try:
        for process in driver.children(recursive=True):
            if process.cmdline()[:1] == [title]:
                found.append(process)
    except psutil.NoSuchProcess:
        pass
    return found


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 1024
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return 0.0


@contextmanager
def crowded_ray(cpus: int) -> Iterator[dict[str, str]]:
    """Start a Ray that believes in `cpus` CPUs and yield the variables that lead to it."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_raylet_start_wait_time_s": "120"}
    path = (str(common.ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    os.environ["OMP_NUM_THREADS"] = "1"
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="sat_ray-", ignore_cleanup_errors=True) as folder:
        head = {"num_cpus": cpus, "num_gpus": 0, "object_store_memory": 200 * 1024**2, "temp_dir": folder}
        head |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": _free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield {"RAY_ADDRESS": cluster.address} | {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        finally:
            cluster.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def records(root: Path, stage: str) -> list[dict[str, Any]]:
    """Return the records of a stage, oldest first."""
    found = [json.loads(path.read_text()) for path in root.glob(f"*/state/{stage}/*.json")]
    return sorted(found, key=lambda record: record["created"])


def most_at_once(done: list[dict[str, Any]]) -> int:
    """Return how many units of work overlapped at most; a record says when it ended and how long it took."""
    edges = sorted([(one["created"] - one["seconds"], 1) for one in done] + [(one["created"], -1) for one in done])
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


def measure_trials(count: int, at_once: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a sweep whose search has `count` trials and return its figures and details."""
    alphas = ",".join(f"{1 + number / 100:g}" for number in range(count))
    choice = [*TRIVIAL, "--data.dataset", "load_parts:test_64", "--search.activations", f"parametric_softplus:{alphas}"]
    with tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as folder, crowded_ray(at_once) as variables:
        with MemoryWatch(os.getpid()) as memory:
            ran = run_sweep(choice, Path(folder), **variables)
        done = records(Path(folder), "search")
    assert len(done) == count, f"{len(done)} trials of {count}"
    spent = sum(seconds for name, seconds in ran.tracker["seconds"].items() if name != "__init__")
    drivers = [sample.driver for sample in ran.samples]
    figures = {
        "tracking_share": spent / ran.wall,
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
    """Run a sweep whose evaluation has `count` shards, run it again when all is committed, and merge parts of it alone."""
    choice = [*TRIVIAL, "--data.dataset", f"load_parts:test_{count}", "--search.activations", "relu"]
    choice += ["--evaluation.shard-size", "1", "--evaluation.lanes", "1", "--resources.cpus-per-evaluation", "1"]
    with tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as folder:
        ran = run_sweep(choice, Path(folder))
        ends = [record["created"] for record in records(Path(folder), "evaluate")]
        assert len(ends) == count, f"{len(ends)} shards of {count}"
        again = run_sweep(choice, Path(folder))
        merges = {size: merge_alone(Path(folder), size) for size in (count // 10, count // 2, count)}
    tenth = count // 10
    pace = {end: (ends[end - 1] - ends[end - tenth]) / (tenth - 1) for end in (tenth, count // 2, count)}
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
        "tracker_share": sum(seconds for name, seconds in ran.tracker["seconds"].items() if name != "__init__") / ran.wall,
    }
    return figures, details


def _at(samples: list[Sample], shards: int) -> float:
    """Return the driver's memory in MiB when so many shards had been committed."""
    return next((sample.driver for sample in samples if sample.shards >= shards), float("nan")) / 1024


MERGE = """
import json, sys, time
from sat_ray.outcomes import merge_outcomes
from sat_ray.plan import EVALUATE
from sat_ray.stages import Records
from sat_ray.storage import Storage
from pipelines.stages import Dataset
from sat_ray.data.shards import image_ids

def status(field):
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) for line in lines if line.startswith(field))

records, size, data = Records(Storage.at(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
expected = image_ids(Storage(data), "test").numpy()
chosen = [record.key for record in records.each(EVALUATE) if record.inputs["rows"][0] < size]
parts = lambda keys: (records.find(EVALUATE, key) for key in keys)
merge_outcomes(parts([one for one in chosen if records.find(EVALUATE, one).inputs["rows"][0] == 0]), expected[:1], records, name="warm-up")
before, started = status("VmRSS"), time.perf_counter()
merge_outcomes(parts(chosen), expected[:size], records, name="merged")
print(json.dumps({"seconds": time.perf_counter() - started, "peak_kib": status("VmHWM") - before}))
"""


def merge_alone(root: Path, size: int) -> dict[str, float]:
    """Merge the first `size` shards of a sweep in a process of its own; return its seconds and the growth of its memory."""
    (folder,), (data,) = root.glob("digits_smoke*"), (root / "data").iterdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(common.ROOT), str(Path(__file__).parent)]), "OMP_NUM_THREADS": "1"}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # Arrow's own keeps some 30 MB for later whatever the work was
    command = [sys.executable, "-c", MERGE, str(folder), str(size), str(data)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--at-once", type=int, default=16, metavar="N", help="trials that may train at one time; default 16")
    parser.add_argument("--only", choices=("trials", "shards"), help="measure one part alone")


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__, smoke=False, more=_own_options)
    about = common.machine()
    trials, shards = (40, 2000) if options.quick else (200, 20_000)
    figures, details = dict[str, Any](), dict[str, Any]()
    for part, measure in (("trials", lambda: measure_trials(trials, options.at_once)), ("shards", lambda: measure_shards(shards))):
        if options.only in (None, part):
            found, more = measure()
            figures |= found
            details[part] = more
    common.finish("load: many trials, many shards", figures, details, about, path=options.json)


if __name__ == "__main__":
    main()
