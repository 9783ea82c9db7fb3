"""Every process of a sweep on a private Ray is killed once: the sweep goes on, or ends in one line
and goes on when started again.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from repository import ROOT
from sweeps import environment, leaderboard, numbers, start

RECIPE = "digits_smoke"
LIMIT_SECONDS = 1500.0
SHORT = ("--search.activations", "relu", "silu", "--search.pairs", "--final.seeds", "0")


class Driver:
    """A sweep, and the processes that it started."""

    def __init__(self, root: Path) -> None:
        self.log = root.parent / "log"
        command = ("sweep", RECIPE, "--storage", str(root), *SHORT, "--name", "sweep")
        settings = environment(PYTHONUNBUFFERED="1")
        with self.log.open("wb") as log:
            self.process = start(
                *command, env=settings, stdout=log, stderr=log, preexec_fn=_hear_sigint
            )

    def titled(self, pattern: str) -> list[psutil.Process]:
        """Return its processes whose title matches."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if re.search(pattern, " ".join(process.cmdline())):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, pattern: str, *, after: float) -> bool:
        """Kill one such process when it has lived for some seconds;
        False where the sweep ended before.
        """
        end = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            for process in self.titled(pattern):
                if time.time() - process.create_time() > after:
                    process.send_signal(signal.SIGKILL)
                    return True
            time.sleep(0.05)
        return False

    def said(self) -> str:
        """Return what it printed."""
        return self.log.read_text(errors="replace")


def _hear_sigint() -> None:
    """Undo what a shell does to a command in its background, which these tests may be part of."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Driver]:
    """Start a sweep, and end it at the latest with the test."""
    driver = Driver(tmp_path / "runs")
    yield driver
    if driver.process.poll() is None:
        driver.process.kill()
        driver.process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Return the numbers of a sweep that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed") / "runs"
    driver = Driver(root)
    assert driver.process.wait(LIMIT_SECONDS) == 0, driver.said()
    return numbers(leaderboard(root / "sweep"))


@pytest.mark.fault
@pytest.mark.timeout(4000)
def test_a_sweep_survives_the_death_of_the_process_of_every_stage(
    started: Driver, undisturbed: list[dict[str, object]], tmp_path: Path
) -> None:
    """A stage is a task whose worker process takes its name for as long as it runs."""
    struck = []
    for title in ("prepare", "search", "train", "TrainController", "evaluate", "report"):
        if started.kill(rf"^ray::{title}\b", after=0.0):
            struck.append(title)
    assert started.process.wait(LIMIT_SECONDS) == 0, started.said()
    assert {"prepare", "search", "train", "TrainController"} <= set(struck)
    assert numbers(leaderboard(tmp_path / "runs" / "sweep")) == undisturbed


@pytest.mark.fault
@pytest.mark.timeout(4000)
def test_the_death_of_the_raylet_is_one_line_and_the_same_command_goes_on(
    started: Driver, undisturbed: list[dict[str, object]], tmp_path: Path
) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while "] train: " not in started.said() and time.monotonic() < end:
        time.sleep(0.5)
    assert started.kill(r"/raylet/raylet ", after=0.0)
    assert started.process.wait(LIMIT_SECONDS) == 2, started.said()
    after = started.said()
    assert "Traceback" not in after
    assert "the same command goes on from there" in after.splitlines()[-1]
    again = Driver(tmp_path / "runs")
    assert again.process.wait(LIMIT_SECONDS) == 0, again.said()
    assert numbers(leaderboard(tmp_path / "runs" / "sweep")) == undisturbed


# python -c INTERRUPTED NUMBER SCRIPT ...: send a signal to a command while Ray connects it
INTERRUPTED = """
import os, runpy, sys, threading, time
number, script = int(sys.argv[1]), sys.argv[2]
del sys.argv[:2]
def strike():
    while getattr(sys.modules.get("ray._private.worker"), "_global_node", None) is None:
        time.sleep(0.01)
    time.sleep(0.25)
    os.kill(os.getpid(), number)
threading.Thread(target=strike, daemon=True).start()
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.fault
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
def test_a_signal_while_ray_connects_ends_a_sweep_without_a_crash(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Ray has a handler of its own then, and half a connection."""
    script = str(ROOT / "pipelines" / "sweep.py")
    command = [sys.executable, "-c", INTERRUPTED, str(int(number)), script, RECIPE, *SHORT]
    done = subprocess.run(
        [*command, "--storage", str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=_hear_sigint,
    )
    assert done.returncode == 130, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{number.name}: stopping"), lines


@pytest.mark.fault
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
@pytest.mark.parametrize("after", [1.0, 4.0, 9.0, 14.0])
def test_a_signal_in_the_first_seconds_ends_a_sweep_in_time(
    number: signal.Signals, after: float, started: Driver
) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while "sweep sweep in" not in started.said() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(after)
    os.kill(started.process.pid, number)
    assert started.process.wait(60) == 130
    assert f"{number.name}: stopping" in started.said()
