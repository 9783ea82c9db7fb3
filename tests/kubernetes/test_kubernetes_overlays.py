"""The other overlays, each on this machine's nodes: a job with a cluster of its own, the same under
Kueue, and a head whose state lies in Redis.
"""

import json
import time
from collections.abc import Iterator

import pytest
from comparison import TRAINING, Left, again, begin, left_by
from fitting import Document, fitted
from installation import devices, install, label
from scenarios import (
    NAMESPACE,
    NO_KUEUE,
    WORKER,
    Submission,
    has_kueue,
    head_pod,
    kubectl,
    pods,
    record,
    until,
)

from cluster.checks.safety import quantity
from tests.kubernetes.machine.addons import storage_client
from tests.kubernetes.machine.settings import BUCKET

pytestmark = pytest.mark.kubernetes

JOB = "rayjob/sat-ray-sweep"
RAY = "ray.io/is-ray-node=yes"
QUEUE = "clusterqueue/sat-ray"


def test_a_job_has_a_cluster_of_its_own_and_leaves_none(alone: Left) -> None:
    """Apply overlays/rayjob: the operator makes a cluster, submits, and removes it."""
    _forget_sweeps()
    began = time.monotonic()
    with install("rayjob"):
        measured = _follow(began)
        equal = _equal(alone)
        record("several nodes: overlays/rayjob, from apply", **measured, equal_numbers=equal)
    assert equal


@pytest.fixture
def gpu_node() -> Iterator[None]:
    """Let one node have a GPU, which the job under Kueue wants for its worker of that group."""
    label("node3", "gpu-on-demand")
    devices("node3", 1)
    yield
    devices("node3", 0)
    label("node3", "cpu")


@pytest.mark.usefixtures("gpu_node")
def test_a_job_under_kueue_waits_for_its_whole_size_and_gives_the_quota_back(alone: Left) -> None:
    """Queue a sweep behind a small quota, raise the quota, and follow the job to its end."""
    if not has_kueue():
        pytest.skip(NO_KUEUE)
    _forget_sweeps()
    kubectl("delete", QUEUE, "--ignore-not-found")
    with install("kueue", _with_little_memory):
        said = until(_why_it_waits, what="the reason in the job's workload", seconds=120)
        until(lambda: _status("jobDeploymentStatus") == "Suspended", what="a halted job")
        assert pods(RAY) == []
        began = time.monotonic()
        _set_memory("20Gi")
        until(lambda: _used("memory"), what="the use of the quota")
        used = _used("memory")
        measured = _follow(began)
        until(lambda: _used("memory") == 0, what="a free quota")
        equal = _equal(alone)
        shown = {"said": said, "used_mib": used >> 20, "equal_numbers": equal}
        record("several nodes: overlays/kueue, from the quota", **measured, **shown)
    assert equal


@pytest.fixture
def redis() -> Iterator[None]:
    """Install overlays/gcs-fault-tolerance."""
    with install("gcs-fault-tolerance"):
        yield


@pytest.mark.usefixtures("redis")
def test_a_restart_of_redis_changes_no_number(sweep: Submission, alone: Left) -> None:
    """Delete the pod of Redis while a sweep trains: the head ends, and the same command goes on."""
    begin(sweep, stage=TRAINING)
    before = _workers()
    kubectl("-n", NAMESPACE, "delete", "pod", "redis-0")
    kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/redis", "--timeout=300s")
    sweep.process.wait(timeout=600)
    kept = before & _workers()
    record("workers after the restart of Redis", before=len(before), kept=len(kept))
    again("several nodes: Redis restarted during train", sweep, alone)


@pytest.mark.usefixtures("redis")
def test_workers_outlive_the_head(sweep: Submission, alone: Left) -> None:
    """Delete the head while a sweep trains: its workers stay, and the same command goes on."""
    sweep.start().wait_for(TRAINING)
    before = _workers()
    head = head_pod()
    kubectl("-n", NAMESPACE, "delete", "pod", head, "--grace-period=1")
    until(lambda: head_pod() != head, what="another head")
    kept = before & _workers()
    record("workers after the head's end, with Redis", before=len(before), kept=len(kept))
    sweep.process.wait(timeout=600)
    again("several nodes: head pod deleted during train, with Redis", sweep, alone)
    assert kept == before


def _workers() -> set[str]:
    return {one["metadata"]["uid"] for one in pods(WORKER)}


def _follow(began: float) -> dict[str, float]:
    """Wait until the job has succeeded and its pods are gone; return the seconds of both."""
    until(lambda: _status("jobDeploymentStatus") in ("Complete", "Failed"), what="the job")
    result = time.monotonic() - began
    log = kubectl("-n", NAMESPACE, "logs", "job/sat-ray-sweep", "--tail=40", check=False)
    assert _status("jobStatus") == "SUCCEEDED", log
    until(lambda: not pods(RAY), what="no pods of the job's cluster")
    return {"result": round(result, 1), "zero pods": round(time.monotonic() - began, 1)}


def _equal(alone: Left) -> bool:
    (name,) = _sweeps()
    return left_by(name) == alone


def _with_little_memory(overlay: str) -> list[Document]:
    documents = fitted(overlay)
    (queue,) = [one for one in documents if one["kind"] == "ClusterQueue"]
    memory = queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"][1]
    assert memory["name"] == "memory"
    memory["nominalQuota"] = "4Gi"
    return documents


def _why_it_waits() -> str:
    """Return why the job has no quota, where it is for the lack of memory."""
    listed = kubectl("-n", NAMESPACE, "get", "workloads.kueue.x-k8s.io", "-o", "json")
    messages = [
        condition["message"]
        for workload in json.loads(listed)["items"]
        for condition in workload.get("status", {}).get("conditions", [])
        if condition["type"] == "QuotaReserved"
    ]
    return next((one for one in messages if "insufficient quota for memory" in one), "")


def _set_memory(quota: str) -> None:
    place = "/spec/resourceGroups/0/flavors/0/resources/1/nominalQuota"
    patch = [{"op": "replace", "path": place, "value": quota}]
    kubectl("patch", QUEUE, "--type=json", f"--patch={json.dumps(patch)}")


def _used(resource: str) -> int:
    """Return how much of a resource the queue's jobs use, in bytes or processors."""
    (flavor,) = json.loads(kubectl("get", QUEUE, "-o", "json"))["status"]["flavorsUsage"]
    (total,) = [one["total"] for one in flavor["resources"] if one["name"] == resource]
    return int(quantity(str(total)))


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
