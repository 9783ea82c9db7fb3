"""Start processes that outlive this one, and end exactly those."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .settings import LOGS, STATE

PIDS = STATE / "pids"


def start(name: str, command: Sequence[str], *, namespace: str | None = None) -> None:
    """Start a command in the background, unless the process of that name runs already."""
    if running(name):
        return
    PIDS.mkdir(parents=True, exist_ok=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    # nsenter and not `ip netns exec`: that one mounts a new /sys, which hides the cgroups.
    prefix = ["nsenter", f"--net=/run/netns/{namespace}"] if namespace else []
    with (LOGS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (PIDS / name).write_text(f"{process.pid} {_start_time(process.pid)}")


def running(name: str) -> int | None:
    """Return the id of the running process of that name."""
    try:
        pid, started = (PIDS / name).read_text().split()
    except FileNotFoundError:
        return None
    # The time of the start tells a process from a later one that was given the same id.
    return int(pid) if _start_time(int(pid)) == started else None


def stop(name: str) -> None:
    """End the process of that name, and wait until it has ended."""
    pid = running(name)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while running(name) and time.monotonic() < deadline:
            time.sleep(0.1)
        if running(name):
            os.kill(pid, signal.SIGKILL)
    (PIDS / name).unlink(missing_ok=True)


def names() -> list[str]:
    """Return the names of the processes that were started, the newest first."""
    files = sorted(PIDS.glob("*"), key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.name for file in files]


def wait_until(what: str, check: Sequence[str], *, log: Path) -> None:
    """Wait until a command succeeds; raise RuntimeError with the end of a log if it never does."""
    deadline = time.monotonic() + 180
    while True:
        done = subprocess.run(check, capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise RuntimeError(
                f"{what} did not answer within 180 s: {done.stderr.strip()}\n"
                f"the end of {log}:\n{tail}"
            )
        time.sleep(1)


def run(*command: str, given: str | None = None) -> str:
    """Run a command to its end and return what it printed; raise with its error if it fails."""
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _start_time(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]
