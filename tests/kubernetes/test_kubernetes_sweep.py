"""A sweep from `make submit` to the last worker's end, undisturbed and disturbed; its numbers must
be those of the same image without a cluster.
"""

import json
import time

import pytest
from comparison import (
    EVALUATION,
    SEARCH,
    TRAINING,
    Left,
    again,
    begin,
    disturbed,
    finish,
)
from scenarios import (
    MLFLOW,
    NAMESPACE,
    WORKER,
    Submission,
    head_pod,
    kubectl,
    pods,
    python_in,
    record,
)

from tests.kubernetes.machine import control_plane, processes

pytestmark = pytest.mark.kubernetes

OPERATOR = ("-n", "kuberay-operator", "deployment/kuberay-operator")
API_AWAY_SECONDS = 60


def test_a_sweep_starts_its_workers_from_none_and_ends_without_any(
    sweep: Submission, alone: Left
) -> None:
    """Submit to a cluster of a head alone, and wait until it is alone again."""
    finish("undisturbed", sweep.start(), alone)
    assert sweep.most_workers > 0


def test_a_deleted_worker_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Delete a worker's pod while trainings run."""

    def delete() -> None:
        kubectl("-n", NAMESPACE, "delete", "pod", pods(WORKER)[0]["metadata"]["name"])

    disturbed("worker pod deleted", sweep, alone, during=TRAINING, do=delete)


def test_a_restarted_operator_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Restart KubeRay's operator while the search runs."""

    def restart() -> None:
        kubectl("rollout", "restart", *OPERATOR)

    disturbed("operator restarted", sweep, alone, during=SEARCH, do=restart)


def test_a_minute_without_the_api_server_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Stop the API server during the training, and start it again after a minute."""

    def stop() -> None:
        processes.stop("api-server")
        time.sleep(API_AWAY_SECONDS)
        control_plane.start_api_server()

    # The port-forward of `make submit` breaks with the API server; the sweep itself goes on.
    begin(sweep, stage=TRAINING)
    stop()
    sweep.process.wait(timeout=2400)
    record("API server away: make submit", status=sweep.process.returncode)
    again("API server away for 60 s", sweep, alone)


def test_a_deleted_mlflow_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Delete MLflow's pod during the training: every run is complete in the end."""

    def delete() -> None:
        kubectl("-n", NAMESPACE, "delete", "pod", "-l", MLFLOW)

    disturbed("MLflow pod deleted", sweep, alone, during=TRAINING, do=delete)
    code = f"""
import json, mlflow
client = mlflow.MlflowClient()
where = [one.experiment_id for one in client.search_experiments()]
runs = client.search_runs(where, "tags.`sat_ray.sweep` = '{sweep.name}'", max_results=1000)
print(json.dumps([[one.data.tags["mlflow.runName"], one.info.status] for one in runs]))
"""
    runs = json.loads(python_in(head_pod(), code).splitlines()[-1])
    finished = [status for _, status in runs].count("FINISHED")
    record("MLflow pod deleted: runs", runs=len(runs), finished=finished)
    assert runs and finished == len(runs), runs


@pytest.mark.parametrize(
    ("during", "grace_seconds"), [(SEARCH, 1), (TRAINING, 120), (TRAINING, 1), (EVALUATION, 1)]
)
def test_the_same_command_goes_on_after_the_head_was_deleted(
    sweep: Submission, alone: Left, during: str, grace_seconds: int
) -> None:
    """Delete the head's pod in a stage, and give the same command again."""
    begin(sweep, stage=during)
    grace = f"--grace-period={grace_seconds}"
    kubectl("-n", NAMESPACE, "delete", "pod", head_pod(), grace)
    sweep.process.wait(timeout=600)
    stage = during.strip(r"\]: ")
    again(f"head pod deleted during {stage}, grace period {grace_seconds} s", sweep, alone)
