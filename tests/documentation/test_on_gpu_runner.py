"""The runner of what waits for a GPU: it goes on where it stopped, and no part stops the rest."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import on_gpu
import psutil
import pytest

LEAVES_A_CHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
print("before the end", flush=True)
time.sleep(600)
"""
WRITES = """
import json, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps({"images_per_second": 7.5}))
"""
FAILS_ONCE = """
import pathlib, sys
if not pathlib.Path(sys.argv[2]).exists():
    pathlib.Path(sys.argv[2]).touch()
    sys.exit("no room")
pathlib.Path(sys.argv[1]).write_text('{"speedup": {"torchattacks": 12}}')
"""


def test_a_second_run_skips_what_ended_well_and_no_process_of_a_part_is_left(
    tmp_path: Path,
) -> None:
    def part(name: str, code: str, *arguments: str, seconds: float = 120) -> on_gpu.Part:
        command = (sys.executable, "-c", code, *arguments)
        return on_gpu.Part(name=name, command=command, seconds=seconds)

    pid = tmp_path / "pid"
    listed = [
        part("tests", LEAVES_A_CHILD, str(pid), seconds=8),
        part("evaluation", FAILS_ONCE, "FIGURES", str(tmp_path / "tried")),
        part("training", WRITES, "FIGURES"),
    ]
    about = {"commit": "abc", "quick": False}

    def run(**changes: Any) -> dict[str, Any]:
        runner = on_gpu.Runner(tmp_path, about | changes, ("commit",))
        runner.run(listed, seconds=400)
        parts: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())["parts"]
        return parts

    first = run()
    ended = {name: result["status"] for name, result in first.items()}
    assert ended == {"tests": "over time", "evaluation": "failed", "training": "ok"}
    child = int(pid.read_text())
    for _ in range(50):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child of the part that ran over is still there")
    assert (tmp_path / "tests.log").read_text() == "before the end\n"
    assert (tmp_path / "evaluation.log").read_text() == "no room\n"
    table = (tmp_path / "table.md").read_text()
    assert "| training | images per second | 7.5 |" in table
    assert "| evaluation | torchattacks / ours, seconds | not measured | >= 10 |  |" in table

    listed[0] = part("tests", WRITES, "FIGURES")
    second = run()
    assert [result["status"] for result in second.values()] == ["ok"] * 3
    assert second["training"] == first["training"]  # not run again
    table = (tmp_path / "table.md").read_text()
    assert "| evaluation | torchattacks / ours, seconds | 12 | >= 10 | met |" in table

    listed[2] = part("training", "raise SystemExit(3)")
    assert run()["training"] == first["training"]
    other = run(commit="def")
    assert other["training"]["exit_status"] == 3  # results of another commit do not count
