"""Measure what orchestration costs: the real `pipelines/sweep.py` on fresh storage.

    wall_over_compute    wall time / (sum over records of seconds x cores used / cores here);
                         1 means that the machine did nothing else
    peak_rss_gib         most memory of all processes of the sweep at one time; pages shared
                         between processes count in each of them
    peak_pss_gib         the same with shared pages counted once (Linux only)

The recipe is digits, which takes some minutes; --quick: digits_smoke, about a minute, most of it
start-up.
"""

import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import common
import psutil

SAMPLE_SECONDS = 1.0
STAGE_DONE = re.compile(r"\] (\w+) done in (\d+) s")


class MemoryWatch:
    """Sample the memory of a process and all its descendants until the block ends."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.seen: dict[int, psutil.Process] = {}
        self.peak_rss = self.peak_pss = self.most_processes = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.stopped.wait(SAMPLE_SECONDS):
            memory = [memory_of(process) for process in self._tree()]
            self.peak_rss = max(self.peak_rss, sum(rss for rss, _ in memory))
            self.peak_pss = max(self.peak_pss, sum(pss for _, pss in memory))
            self.most_processes = max(self.most_processes, len(memory))

    def _tree(self) -> list[psutil.Process]:
        """Return the processes alive now; those seen before
        stay in even where their parent is gone.
        """
        try:
            found = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        self.seen |= {process.pid: process for process in found}
        return [process for process in self.seen.values() if process.is_running()]


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Return resident memory, and the same with shared pages counted once (Linux only), in
    bytes; 0 of a process that is gone.
    """
    try:
        info = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return 0, 0
    return info.rss, getattr(info, "pss", 0)


def run_sweep(recipe: str, root: Path) -> tuple[float, str, MemoryWatch]:
    """Run the sweep as a user would; return wall seconds, its output and the memory seen.
    Raises RuntimeError if it fails.
    """
    command = common.sweep_command(recipe, "--storage", str(root))
    started = perf_counter()
    lines = []
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=common.environment(),
        ) as sweep,
        MemoryWatch(sweep.pid) as memory,
    ):
        assert sweep.stdout is not None
        for line in sweep.stdout:
            lines.append(line)
            print(line, end="", flush=True)
        sweep.wait()
    if sweep.returncode:
        raise RuntimeError(f"the sweep ended with exit status {sweep.returncode}")
    return perf_counter() - started, "".join(lines), memory


def records_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every committed record of a sweep."""
    for path in sorted(folder.glob("state/*/*.json")):
        record = json.loads(path.read_text())
        if "seconds" in record:
            yield record


def core_seconds(folder: Path) -> dict[str, float]:
    """Add up the core-seconds of work per stage.

    A training that went on from an earlier record of the same name reports its time from the start,
    so the longest of a name counts.
    """
    resources = json.loads((folder / "config.json").read_text())["resources"]
    used = {
        "search": resources["cpus_per_trial"],
        "train": resources["train_workers"] * resources["cpus_per_worker"],
        **dict.fromkeys(
            ("validate", "evaluate", "strong", "card"), resources["cpus_per_evaluation"]
        ),
    }
    totals: dict[str, float] = {}
    longest: dict[tuple[str, str], float] = {}
    for record in records_of(folder):
        stage, seconds = record["stage"], record["seconds"] * used.get(record["stage"], 1)
        if stage in ("search", "train"):
            name = (stage, record["payload"]["name"])
            seconds, longest[name] = (
                max(0.0, seconds - longest.get(name, 0.0)),
                max(seconds, longest.get(name, 0.0)),
            )
        totals[stage] = totals.get(stage, 0.0) + seconds
    return totals


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__, smoke=False)
    about = common.machine()
    recipe = "digits_smoke" if options.quick else "digits"
    with tempfile.TemporaryDirectory(prefix="sat_ray-bench-") as root:
        wall, output, memory = run_sweep(recipe, Path(root))
        compute = core_seconds(Path(root, recipe))
    figures = {
        "wall_over_compute": wall / (sum(compute.values()) / common.cores()),
        "wall_seconds": wall,
        "peak_rss_gib": memory.peak_rss / 2**30,
    }
    details = {
        "recipe": recipe,
        "peak_pss_gib": memory.peak_pss / 2**30,
        "most_processes": memory.most_processes,
        "core_seconds_of_stage": compute,
        "wall_seconds_of_stage": {
            name: float(seconds) for name, seconds in STAGE_DONE.findall(output)
        },
    }
    common.finish(f"pipeline: the {recipe} sweep", figures, details, about, path=options.json)


if __name__ == "__main__":
    main()
