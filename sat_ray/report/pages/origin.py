"""Where and when the results of a report were computed."""

import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sat_ray

CPUINFO = Path("/proc/cpuinfo")
GIT_SECONDS = 60  # a busy machine may take seconds; the report is written once


def origin(computed: Iterable[tuple[Mapping[str, Any], float]]) -> dict[str, str]:
    """Return the lines of the page's footer, by name.

    computed: (numerical environment, unix time) of every training and evaluation behind the
    report, from their records.
    """
    found = list(computed)
    devices = sorted({_device(environment) for environment, _ in found})
    days = sorted(_day(moment) for _, moment in found)
    written = {
        "report written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {processor()}",
        "code": code_version(),
    }
    if not found:
        return written
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return {"computed": f"{span}, {'; '.join(devices)}"} | written


def _device(environment: Mapping[str, Any]) -> str:
    """Spell a numerical environment: `cpu AVX512, 1 thread, torch 2.14.1`."""
    kind, _, name = str(environment.get("device", "unknown device")).partition(":")
    threads = environment.get("threads")
    parts = [f"{kind} {name}".strip()]
    if kind == "cpu" and threads:
        parts.append(f"{threads} thread" + ("" if threads == 1 else "s"))
    if "torch" in environment:
        parts.append(f"torch {environment['torch']}")
    return ", ".join(parts)


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


def processor() -> str:
    """Name this machine's processor; its architecture where the system gives no name."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def code_version() -> str:
    """Return the version of the package, and the commit where it lies in a checkout of its own."""
    folder = Path(sat_ray.__file__).resolve().parent.parent
    version = f"sat_ray {sat_ray.__version__}"
    top = _git(folder, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != folder:  # installed somewhere inside another project
        return version
    changed = (
        " with changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
    )
    return f"{version}, commit {_git(folder, 'rev-parse', '--short=12', 'HEAD')}{changed}"


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints; "" where there is no git, no checkout or no answer."""
    try:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
