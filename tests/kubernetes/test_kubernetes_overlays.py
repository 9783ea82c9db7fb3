"""The other overlays, each on this machine's nodes: a job with a cluster of its own, and a head
whose state lies in Redis.
"""

import time
from collections.abc import Iterator

import pytest
from comparison import TRAINING, Left, again, disturbed, left_by
from installation import install
from scenarios import HEAD, NAMESPACE, WORKER, Submission, head_pod, kubectl, pods, record, until

from tests.kubernetes.machine.addons import storage_client
from tests.kubernetes.machine.settings import BUCKET

pytestmark = pytest.mark.kubernetes

JOB = "rayjob/sat-ray-sweep"


def test_a_job_has_a_cluster_of_its_own_and_leaves_none(alone: Left) -> None:
    """Apply overlays/rayjob: the operator makes a cluster, submits, and removes it."""
    _forget_sweeps()
    began = time.monotonic()
    with install("rayjob"):
        until(lambda: _status("jobDeploymentStatus") in ("Complete", "Failed"), what="the job")
        result = time.monotonic() - began
        assert (_status("jobStatus"), _status("jobDeploymentStatus")) == ("SUCCEEDED", "Complete")
        until(lambda: not pods(HEAD), what="no head")
        zero = time.monotonic() - began
        (name,) = _sweeps()
        left = left_by(name)
        equal = left.rows == alone.rows and left.outcomes == alone.outcomes
        measured = {"result": round(result, 1), "zero pods": round(zero, 1)}
        record("overlays/rayjob, from apply", **measured, equal_numbers=equal)
    assert equal


@pytest.fixture
def redis() -> Iterator[None]:
    """Install overlays/gcs-fault-tolerance."""
    with install("gcs-fault-tolerance"):
        yield


@pytest.mark.usefixtures("redis")
def test_a_restart_of_redis_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Delete the pod of Redis while a sweep trains."""

    def restart() -> None:
        kubectl("-n", NAMESPACE, "delete", "pod", "redis-0")
        kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/redis", "--timeout=300s")

    disturbed("Redis restarted", sweep, alone, during=TRAINING, do=restart)


@pytest.mark.usefixtures("redis")
def test_workers_outlive_the_head(sweep: Submission, alone: Left) -> None:
    """Delete the head while a sweep trains: its workers stay, and the same command goes on."""
    sweep.start().wait_for(TRAINING)
    before = {one["metadata"]["uid"] for one in pods(WORKER)}
    head = head_pod()
    kubectl("-n", NAMESPACE, "delete", "pod", head, "--grace-period=1")
    until(lambda: head_pod() != head, what="another head")
    kept = before & {one["metadata"]["uid"] for one in pods(WORKER)}
    record("workers after the head's end, with Redis", before=len(before), kept=len(kept))
    sweep.process.wait(timeout=600)
    again("head pod deleted during train, with Redis", sweep, alone)
    assert kept == before


def _status(field: str) -> str:
    return kubectl("-n", NAMESPACE, "get", JOB, "-o", f"jsonpath={{.status.{field}}}")


def _sweeps() -> list[str]:
    """Return the names of the finished sweeps in the bucket."""
    pages = storage_client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [one["Key"].split("/") for page in pages for one in page.get("Contents", [])]
    return [key[1] for key in keys if key[0] == "sweeps" and key[-1] == "leaderboard.json"]


def _forget_sweeps() -> None:
    client = storage_client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="sweeps/")
    for page in pages:
        for one in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=one["Key"])
