"""A small sweep on a cluster of real hosts survives the loss of each kind of worker; the rest of
the table: python tests/run_faults.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from repository import TESTS

from faults.hosts import missing

KINDS = (
    *("trial", "train-worker", "evaluation-worker"),
    *("stage", "train-stage", "train-controller", "evaluate-stage"),
)


@pytest.mark.fault
@pytest.mark.timeout(3600)
def test_a_sweep_that_loses_a_worker_in_every_stage_ends_with_the_numbers_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    """MLflow's logins and the search for secrets in all that was left are part of the run."""
    if lacking := missing():
        pytest.skip(f"{lacking}: no fault was put into anything")
    command = [
        sys.executable,
        str(TESTS / "run_faults.py"),
        "--only",
        *KINDS,
        "--docs",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())["kinds"]
    assert {kind: one["wrong"] for kind, one in found.items()} == {kind: [] for kind in KINDS}
