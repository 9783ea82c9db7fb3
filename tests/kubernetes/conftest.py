"""The cluster that the scenarios need, and what each of them starts from."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from comparison import Left, left_in
from repository import ROOT
from scenarios import NAMESPACE, WORKER, Submission, environment, head_pod, kubectl, pods, until

from cluster.checks.documents import versions
from tests.kubernetes.machine.settings import KUBECONFIG

ALONE = "alone"


@pytest.fixture(autouse=True, scope="session")
def cluster() -> None:
    """Fail at once where no cluster runs."""
    ready = ["kubectl", "get", "--raw=/readyz"]
    if (
        not KUBECONFIG.exists()
        or subprocess.run(ready, capture_output=True, env=environment()).returncode
    ):
        pytest.exit("no Kubernetes answers here: run `make kubernetes-up` first", returncode=2)


@pytest.fixture(scope="session")
def alone() -> Left:
    """Run the sweep of this working tree in one pod of the same image, on a Ray of its own; the
    pod and its result stay for the next call.
    """
    image = versions()["RAY_IMAGE"]
    sweep = "python pipelines/sweep.py digits_smoke --storage /tmp/runs --name alone"
    # A busy machine may need more than one attempt to start Ray.
    attempts = f"cd /tmp/code; until {sweep}; do sleep 5; done"
    steps = f"until test -e /tmp/copied; do sleep 1; done; {attempts}; touch /tmp/done"
    container = {
        "name": "alone",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-ec", f"mkdir /tmp/code; {steps}; sleep infinity"],
        "env": [
            {"name": "RAY_AUTH_MODE", "value": "disabled"},
            {"name": "PYTHONPATH", "value": "/tmp/code"},
        ],
        "resources": {
            "limits": {"cpu": "2", "memory": "5Gi"},
            "requests": {"cpu": "10m", "memory": "100Mi"},
        },
        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/done"]}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": ALONE, "namespace": ALONE},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    if not kubectl("get", "namespace", ALONE, "--ignore-not-found"):
        kubectl("create", "namespace", ALONE)
        kubectl("apply", "-f", "-", given=json.dumps(pod))
        running = "--for=jsonpath={.status.phase}=Running"
        kubectl("-n", ALONE, "wait", running, f"pod/{ALONE}", "--timeout=120s")
        for folder in ("sat_ray", "pipelines"):
            kubectl("cp", str(ROOT / folder), f"{ALONE}/{ALONE}:/tmp/code/{folder}")
        kubectl("-n", ALONE, "exec", ALONE, "--", "touch", "/tmp/copied")
    kubectl("-n", ALONE, "wait", "--for=condition=Ready", f"pod/{ALONE}", "--timeout=1500s")
    return left_in(ALONE, "/tmp/runs/alone", namespace=ALONE)


@pytest.fixture
def sweep(tmp_path: Path, request: pytest.FixtureRequest) -> Submission:
    """Return a sweep of its own name, not yet started, on a cluster without workers."""
    if not kubectl("-n", NAMESPACE, "get", "rayclusters.ray.io", "-o", "name"):
        pytest.fail(f"no RayCluster in namespace {NAMESPACE}: run `make laptop` first")
    until(lambda: not pods(WORKER), what="no workers of an earlier sweep")
    head_pod()
    name = f"{request.node.name.removeprefix('test_')[:30].strip('_')}-{int(time.time())}"
    return Submission(name.replace("_", "-"), (), tmp_path / "submit.log")
