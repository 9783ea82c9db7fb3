"""What the benchmarks share: options, interleaved timing, the machine, tables and JSON."""

import argparse
import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sat_ray.attacks.spec import GRADIENTS
from sat_ray.report.pages.origin import processor
from sat_ray.utils.serialization import flatten

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
REDIRECTING = (
    *("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    *("SAT_RAY_STORAGE", "SAT_RAY_NODE_GROUPS", "MLFLOW_TRACKING_URI"),
)


def options(
    about: str | None,
    *,
    smoke: bool = True,
    images: bool = False,
    gradient: bool = False,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """Parse --quick, --json and the options of the benchmark: --smoke, --images and others."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="end within 5 minutes on 2 cores")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here as well")
    if smoke:
        parser.add_argument(
            "--smoke",
            action="store_true",
            help="end within seconds, for the tests; the figures mean nothing",
        )
    if images:
        parser.add_argument(
            "--images", type=int, metavar="N", help="attack exactly N images, however long it takes"
        )
    if gradient:
        fast = [name for name in GRADIENTS if name != "float32"]
        parser.add_argument(
            "--gradient",
            choices=fast,
            help="time low-precision gradients as well; default: bf16 if the hardware has it",
        )
    more(parser)
    return parser.parse_args()


def seconds_of(work: Callable[[], object]) -> float:
    """Run and return the wall time in seconds."""
    started = perf_counter()
    work()
    return perf_counter() - started


def interleaved(
    cases: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run every case once per round, so that a slow minute of the machine falls on all of them, and
    return what each case returned.

    cases: name -> function that does its work and returns its own measure. The first `warm_up`
    rounds are thrown away.
    """
    results: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(warm_up + rounds):
        for name, case in cases.items():
            value = case()
            if number >= warm_up:
                results[name].append(value)
    return results


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median over rounds of above / below."""
    return median(a / b for a, b in zip(above, below, strict=True))


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment for a sweep.

    Variables that would redirect it are left out; this project and its benchmarks can be imported.
    """
    path = (str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    kept = {name: value for name, value in os.environ.items() if name not in REDIRECTING}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, path))} | more


def sweep_command(*words: str) -> list[str]:
    """Return the command that runs a sweep with these words."""
    return [sys.executable, str(ROOT / "pipelines" / "sweep.py"), *words]


def machine() -> dict[str, Any]:
    """Describe the machine; load_1_minute above 0 means that it was shared."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "vector_unit": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_1_minute": round(os.getloadavg()[0], 2),
    }


def finish(
    title: str,
    figures: dict[str, Any],
    details: dict[str, Any],
    about: dict[str, Any],
    *,
    path: Path | None,
) -> None:
    """Print the figures as a table and write them as JSON with `machine` and `details`."""
    unit, load = about["gpu"] or about["vector_unit"], about["load_1_minute"]
    where = (
        f"{about['cpu']}, {about['cores']} cores, {unit}, torch {about['torch']}, load {load} at "
        "the start"
    )
    table = Table("figure", "value", title=title, caption=where)
    for name, value in [*flatten(figures).items(), *flatten(details).items()]:
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(width=None if os.isatty(1) else 140, highlight=False).print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(figures | {"machine": about, "details": details}, indent=2) + "\n"
        )


def markdown_row(*cells: object) -> str:
    """Return a line of a table in Markdown."""
    return "| " + " | ".join(map(str, cells)) + " |"
