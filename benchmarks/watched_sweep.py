"""Run a sweep, time its tracker and sample the memory of its driver.

The sweep runs on a private Ray or on one that is configured with many CPUs.
"""

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import common
import psutil
from pipeline import STAGE_DONE, memory_of

SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """The state of a sweep at one time.

    driver, stage: PSS in KiB of the driver and of the process of the evaluate stage, 0 if none.
    """

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

    def tracking_share(self) -> float:
        """Return the share of wall time in calls of the tracker, which run beside other work."""
        return (
            sum(seconds for name, seconds in self.tracker["seconds"].items() if name != "__init__")
            / self.wall
        )

    def growth(self, part: str, shards: int) -> float:
        """Return by how many KiB per shard the memory of `part` grew over the evaluation: from
        its first tenth to its last.
        """
        seen = [
            sample for sample in self.samples if sample.shards > 0 and getattr(sample, part) > 0
        ]
        early = [getattr(one, part) for one in seen if shards // 10 <= one.shards <= shards // 5]
        late = [
            getattr(one, part) for one in seen if 9 * shards // 10 <= one.shards < shards
        ]  # later the report's own memory is in it
        return (max(late) - max(early)) / (0.85 * shards) if early and late else float("nan")


def run_sweep(arguments: list[str], root: Path, **environment: str) -> Ran:
    """Run a sweep with its tracker timed and its driver watched. RuntimeError if it fails."""
    clock, log, samples = root / "tracker.json", root / "sweep.log", list[Sample]()
    command = [
        sys.executable,
        str(Path(__file__).with_name("timed_sweep.py")),
        str(clock),
        *arguments,
        "--storage",
        str(root),
    ]
    clean = common.environment(**environment)
    started = time.monotonic()
    with (
        log.open("w") as stream,
        subprocess.Popen(command, env=clean, stdout=stream, stderr=subprocess.STDOUT) as sweep,
    ):
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
    return Sample(
        seconds, shards, _pss(driver), sum(_pss(one) for one in _titled(driver, "ray::evaluate"))
    )


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
    _, pss = memory_of(process)
    return pss / 1024


@contextmanager
def crowded_ray(cpus: int) -> Iterator[dict[str, str]]:
    """Start a Ray configured with `cpus` CPUs and yield the variables that lead to it."""
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_raylet_start_wait_time_s": "120",
    }
    os.environ |= {"PYTHONPATH": common.environment()["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="sat_ray-", ignore_cleanup_errors=True) as folder:
        head = {
            "num_cpus": cpus,
            "num_gpus": 0,
            "object_store_memory": 200 * 1024**2,
            "temp_dir": folder,
        }
        head |= {
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": common.free_port(),
        }
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield {"RAY_ADDRESS": cluster.address} | {
                name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
            }
        finally:
            cluster.shutdown()
