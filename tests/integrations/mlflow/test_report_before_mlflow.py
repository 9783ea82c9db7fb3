"""A finished sweep has its report whatever becomes of MLflow,
and the same command writes MLflow later.
"""

import shlex
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sweeps import environment, leaderboard, pipeline, start

RECIPE = "digits_smoke"
SHORT = shlex.split("--search.activations relu silu --search.pairs --final.seeds 0 --name sweep")


@pytest.mark.fault
@pytest.mark.timeout(4000)
def test_a_sweep_whose_experiment_is_deleted_on_the_way_has_its_report_and_says_how_to_go_on(
    tmp_path: Path,
) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    command = ("sweep", RECIPE, "--storage", str(root), *SHORT)
    with log.open("wb") as stream:
        at_once = environment(PYTHONUNBUFFERED="1")
        driver = start(*command, env=at_once, stdout=stream, stderr=stream)
    while "] train: " not in log.read_text() and driver.poll() is None:
        time.sleep(0.5)
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name(RECIPE).experiment_id
    client.delete_experiment(experiment)
    assert driver.wait(2000) == 2, log.read_text()
    said = log.read_text()
    assert "Traceback" not in said and "] report: " in said
    assert said.splitlines()[-1].startswith("error: ") and "restore" in said.splitlines()[-1]
    board = leaderboard(root / "sweep")
    assert len(board["rows"]) == 2 and (root / "sweep" / "report.html").exists()
    refused = pipeline(*command)
    assert refused.returncode == 2 and "mlflow experiments restore" in refused.stderr
    assert "] prepare" not in refused.stdout  # refused before anything began
    client.restore_experiment(experiment)
    again = pipeline(*command)
    assert again.returncode == 0, again.stderr
    ids = [row["mlflow_run_id"] for row in leaderboard(root / "sweep")["rows"]]
    assert all(client.get_run(one).info.status == "FINISHED" for one in ids)
    (compare,) = [
        line for line in again.stdout.splitlines() if "compare the configurations: http" in line
    ]
    assert "/#/compare-runs?runs=" in compare
