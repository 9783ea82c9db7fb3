"""Ray's own autoscaler buys the nodes of a sweep and gives them back: from none to two to none, and
the numbers of an ordinary Ray.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autoscaling import SMALLER
from sweeps import ROOT, environment, leaderboard, numbers, pipeline, records

STAGES = ("search", "train", "validate", "evaluate", "strong", "card")


@pytest.fixture(scope="module")
def bought(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Run the benchmark, a real sweep on a cluster that starts without a node;
    return its figures and the sweep's folder.
    """
    folder = tmp_path_factory.mktemp("bought")
    command = [sys.executable, str(ROOT / "benchmarks" / "autoscaling.py"), "--quick"]
    command += ["--storage", str(folder), "--json", str(folder / "figures.json")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(), timeout=2400
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    written: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return written, folder / "smaller"


@pytest.mark.fault
@pytest.mark.timeout(3000)
def test_nodes_come_for_a_sweep_and_go_when_it_is_over(bought: tuple[dict[str, Any], Path]) -> None:
    written, _ = bought
    details = written["details"]
    assert (details["nodes_before"], details["most_nodes"], details["nodes_after"]) == (0, 2, 0)
    assert 0 < written["asked_seconds"] < written["up_seconds"] < written["sweep_seconds"]
    assert written["empty_seconds"] < 10 * details["idle_timeout_seconds"]
    changes = list(details["changes"].values())
    asked = next(one["seconds"] for one in changes if one["asked"] or one["up"])
    assert asked == written["asked_seconds"] and changes[0]["up"] == 0 and changes[-1]["up"] == 0


@pytest.mark.fault
@pytest.mark.timeout(3000)
def test_bought_nodes_leave_the_numbers_of_an_ordinary_ray_and_each_unit_of_work_once(
    bought: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    done = pipeline("sweep", "digits_smoke", "--storage", str(tmp_path), *SMALLER, timeout=2000)
    assert done.returncode == 0, done.stdout + done.stderr
    _, folder = bought
    assert numbers(leaderboard(folder)) == numbers(leaderboard(tmp_path / "smaller"))
    for stage in STAGES:
        assert (
            records(folder, stage).keys() == records(tmp_path / "smaller", stage).keys() != set()
        ), stage
    written = tmp_path / "smaller" / "outcomes"
    for model in written.rglob("*.parquet"):
        assert (folder / "outcomes" / model.relative_to(written)).read_bytes() == model.read_bytes()
    assert "SAT_RAY_NODE_GROUPS" not in os.environ
