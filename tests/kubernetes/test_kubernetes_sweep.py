"""A sweep from `make submit` to the last worker's end, undisturbed and disturbed; its numbers must
be those of the same image without a cluster.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scenarios import (
    MLFLOW,
    NAMESPACE,
    WORKER,
    Left,
    Submission,
    head_pod,
    kubectl,
    left_in,
    pods,
    python_in,
    record,
    until,
)

from tests.kubernetes.machine import control_plane, processes

pytestmark = pytest.mark.kubernetes

STORAGE = "/storage/sweeps"  # where overlays/laptop mounts its volume
OPERATOR = ("-n", "kuberay-operator", "deployment/kuberay-operator")
API_AWAY_SECONDS = 60
TRAINING = r"\] train: "
# From that line until the workers of a training are at work.
INTO_TRAINING_SECONDS = 12


@pytest.fixture
def sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Submission:
    """Return a sweep of its own name, not yet started, on a cluster without workers."""
    until(lambda: not pods(WORKER), what="no workers of an earlier sweep")
    head_pod()
    name = f"{request.node.name.removeprefix('test_')[:30].strip('_')}-{int(time.time())}"
    return Submission(name.replace("_", "-"), (), tmp_path / "submit.log")


def test_a_sweep_starts_its_workers_from_none_and_ends_without_any(
    sweep: Submission, alone: Left
) -> None:
    """Submit to a cluster of a head alone, and wait until it is alone again."""
    _finish("undisturbed", sweep.start(), alone)
    assert sweep.most_workers > 0


def test_a_deleted_worker_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Delete a worker's pod while trainings run."""

    def delete() -> None:
        time.sleep(INTO_TRAINING_SECONDS)
        kubectl("-n", NAMESPACE, "delete", "pod", pods(WORKER)[0]["metadata"]["name"])

    _disturbed("worker pod deleted", sweep, alone, during=TRAINING, do=delete)


def test_a_restarted_operator_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Restart KubeRay's operator while the search runs."""

    def restart() -> None:
        kubectl("rollout", "restart", *OPERATOR)

    _disturbed("operator restarted", sweep, alone, during=r"\] search: ", do=restart)


def test_a_minute_without_the_api_server_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Stop the API server during the training, and start it again after a minute."""

    def stop() -> None:
        processes.stop("api-server")
        time.sleep(API_AWAY_SECONDS)
        control_plane.start_api_server()

    # The port-forward of `make submit` breaks with the API server; the sweep itself goes on.
    sweep.start().wait_for(TRAINING)
    time.sleep(INTO_TRAINING_SECONDS)
    stop()
    sweep.process.wait(timeout=2400)
    record("API server away: make submit", status=sweep.process.returncode)
    _again("API server away for 60 s", sweep, alone)


def test_a_deleted_mlflow_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Delete MLflow's pod during the training: every run is complete in the end."""

    def delete() -> None:
        time.sleep(INTO_TRAINING_SECONDS)
        kubectl("-n", NAMESPACE, "delete", "pod", "-l", MLFLOW)

    _disturbed("MLflow pod deleted", sweep, alone, during=TRAINING, do=delete)
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


@pytest.mark.parametrize("grace_seconds", [120, 1])
def test_the_same_command_goes_on_after_the_head_was_deleted(
    sweep: Submission, alone: Left, grace_seconds: int
) -> None:
    """Delete the head's pod during the training, and give the same command again."""
    sweep.start().wait_for(TRAINING)
    time.sleep(INTO_TRAINING_SECONDS)
    grace = f"--grace-period={grace_seconds}"
    kubectl("-n", NAMESPACE, "delete", "pod", head_pod(), grace)
    sweep.process.wait(timeout=600)
    _again(f"head pod deleted, grace period {grace_seconds} s", sweep, alone)


def _disturbed(
    scenario: str, sweep: Submission, alone: Left, *, during: str, do: Callable[[], None]
) -> None:
    sweep.start().wait_for(during)
    do()
    _finish(scenario, sweep, alone)


def _again(scenario: str, first: Submission, alone: Left) -> None:
    """Give the same command until it is not refused: a job that still runs holds the sweep."""
    first.stop_observing()
    for attempt in range(10):
        head_pod()
        log = first.log.with_name(f"again-{attempt}.log")
        again = Submission(first.name, (), log, began=first.began, events=first.events).start()
        if again.process.wait(timeout=2400) == 0:
            _finish(scenario, again, alone)
            return
        again.stop_observing()
        time.sleep(20)
    raise AssertionError(f"{scenario}: the same command never succeeded: {again.said()[-3000:]}")


def _finish(scenario: str, sweep: Submission, alone: Left) -> None:
    """Wait for the sweep's end and for its last worker's; compare what it left."""
    try:
        sweep.finish()
        sweep.wait_for_no_workers()
        left = left_in(head_pod(), f"{STORAGE}/{sweep.name}")
        equal = left.rows == alone.rows and left.outcomes == alone.outcomes
        record(scenario, **sweep.measured(), equal_numbers=equal)
    finally:
        sweep.stop_observing()
    assert left.rows == alone.rows
    assert left.outcomes == alone.outcomes
