"""overlays/kueue: a RayJob starts once its whole size fits into the quota, and gives it back."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from repository import ROOT
from scenarios import (
    NAMESPACE,
    NO_KUEUE,
    Left,
    has_kueue,
    head_pod,
    kubectl,
    left_in,
    load,
    pods,
    python_in,
    record,
    until,
)

from cluster.checks.safety import quantity
from tests.kubernetes.machine.settings import MANIFESTS

pytestmark = pytest.mark.kubernetes

JOB = "sat-ray-sweep"
QUEUE = "clusterqueue/sat-ray"
CODE = "/storage/kueue"  # where small-job.yaml expects the code
# The requests of kueue-sweep/small-job.yaml together: head, worker and submitter.
NEEDED_MIB = 2176 + 2464 + 256
ENOUGH = "5Gi"


@pytest.fixture
def name() -> Iterator[str]:
    """Return the name of a sweep that has its code on the volume; remove its job in the end."""
    if not has_kueue():
        pytest.skip(NO_KUEUE)
    _remove()
    _copy_code(head_pod())
    try:
        yield f"kueue-{int(time.time())}"
    finally:
        _remove()


def test_a_job_waits_for_its_whole_size_and_gives_the_quota_back(name: str, alone: Left) -> None:
    """Queue a sweep behind a small quota, raise the quota, and follow the job to its end."""
    manifests = kubectl("kustomize", str(MANIFESTS / "kueue-sweep"))
    named = manifests.replace("--name kueue", f"--name {name}")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=named)

    reason = until(_why_it_waits, what="the reason in the job's workload", seconds=120)
    until(lambda: _job()["status"].get("jobDeploymentStatus") == "Suspended", what="a halted job")
    assert _job()["spec"]["suspend"] and _pods() == []

    began = time.monotonic()
    _set_memory(ENOUGH)
    until(lambda: _is_true("Admitted"), what="the admission")
    admitted = _seconds(began)
    used = until(lambda: _used("memory"), what="the use of the quota")
    until(_has_ended, what="the job's end", seconds=1800)
    result = _seconds(began)
    log = kubectl("-n", NAMESPACE, "logs", f"job/{JOB}", "--tail=40", check=False)
    assert _job()["status"]["jobStatus"] == "SUCCEEDED", f"{_job()['status']}: {log}"
    until(lambda: _is_true("Finished"), what="the workload's end")
    until(lambda: _used("memory") == 0, what="a free quota")
    freed = _seconds(began)
    until(lambda: not _pods(running=True), what="no pods of the job")
    gone = _seconds(began)

    left = left_in(head_pod(), f"/storage/sweeps/{name}")
    equal = left.rows == alone.rows and left.outcomes == alone.outcomes
    times = {"admitted": admitted, "result": result, "quota free": freed, "zero pods": gone}
    shown = {"said": reason, "used_mib": used >> 20, "equal_numbers": equal}
    record("RayJob under Kueue", **times, **shown, **load())
    assert used == NEEDED_MIB << 20
    assert left.rows == alone.rows
    assert left.outcomes == alone.outcomes


def _copy_code(head: str) -> None:
    """Put the code of this working tree where head and workers of the job find it."""
    code = f"import pathlib, shutil; shutil.rmtree({CODE!r}, True); pathlib.Path({CODE!r}).mkdir()"
    python_in(head, code)
    for folder in ("sat_ray", "pipelines"):
        kubectl("cp", str(ROOT / folder), f"{NAMESPACE}/{head}:{CODE}/{folder}")


def _remove() -> None:
    """Remove job and queues, and wait until no pod of the job is left."""
    for kind, item in (("rayjob", JOB), ("localqueue", "sat-ray")):
        kubectl("-n", NAMESPACE, "delete", kind, item, "--ignore-not-found")
    kubectl("delete", QUEUE, "resourceflavor/sat-ray", "--ignore-not-found")
    until(lambda: not _pods(), what="no pods of an earlier job")


def _job() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("-n", NAMESPACE, "get", "rayjob", JOB, "-o", "json"))
    return found | {"status": found.get("status", {})}


def _has_ended() -> bool:
    return _job()["status"].get("jobDeploymentStatus") in ("Complete", "Failed")


def _pods(*, running: bool = False) -> list[str]:
    """Return the names of the job's pods. running: without those that have ended."""
    return [
        pod["metadata"]["name"]
        for pod in pods("")
        if pod["metadata"]["name"].startswith(JOB)
        and not (running and pod["status"]["phase"] in ("Succeeded", "Failed"))
    ]


def _condition(kind: str) -> dict[str, Any] | None:
    """Return a condition of the job's workload, once it is there."""
    listed = kubectl("-n", NAMESPACE, "get", "workloads.kueue.x-k8s.io", "-o", "json")
    conditions = [
        condition
        for workload in json.loads(listed)["items"]
        for condition in workload.get("status", {}).get("conditions", [])
        if workload["metadata"]["ownerReferences"][0]["name"] == JOB and condition["type"] == kind
    ]
    return conditions[0] if conditions else None


def _why_it_waits() -> str:
    """Return why the job has no quota, where it is for the lack of memory."""
    condition = _condition("QuotaReserved") or {"message": ""}
    return condition["message"] if "insufficient quota for memory" in condition["message"] else ""


def _is_true(kind: str) -> bool:
    condition = _condition(kind)
    return condition is not None and condition["status"] == "True"


def _set_memory(quota: str) -> None:
    place = "/spec/resourceGroups/0/flavors/0/resources/1"
    patch = [
        {"op": "test", "path": f"{place}/name", "value": "memory"},
        {"op": "replace", "path": f"{place}/nominalQuota", "value": quota},
    ]
    kubectl("patch", QUEUE, "--type=json", f"--patch={json.dumps(patch)}")


def _used(resource: str) -> int:
    """Return how much of a resource the queue's jobs use, in bytes or processors."""
    status = json.loads(kubectl("get", QUEUE, "-o", "json"))["status"]
    (flavor,) = status["flavorsUsage"]
    (total,) = [one["total"] for one in flavor["resources"] if one["name"] == resource]
    return int(quantity(str(total)))


def _seconds(began: float) -> float:
    return round(time.monotonic() - began, 1)
