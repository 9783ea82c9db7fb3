"""What the API server admits, who may do what, and which pods reach which."""

import base64
import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from repository import ROOT
from scenarios import (
    HEAD,
    NAMESPACE,
    NO_KUEUE,
    environment,
    has_kueue,
    kubectl,
    pods,
    python_in,
    record,
    until,
)

from cluster.checks.documents import Pod
from cluster.checks.documents import pods as templates
from tests.kubernetes.machine.settings import HOST, S3_PORT

pytestmark = pytest.mark.kubernetes

OVERLAYS = sorted(path.name for path in (ROOT / "cluster" / "overlays").iterdir())
ELSEWHERE = "elsewhere"
ACCOUNTS = ("ray-head", "ray-worker", "mlflow")
QUESTIONS = (
    *(
        ("list", "pods"),
        ("patch", "pods"),
        ("delete", "pods"),
        ("create", "pods"),
        ("patch", "rayclusters.ray.io"),
    ),
    *(("delete", "rayclusters.ray.io"), ("get", "secrets"), ("list", "secrets")),
    *(("create", "rolebindings"), ("create", "pods/exec"), ("create", "serviceaccounts/token")),
    *(("list", "nodes"), ("list", "namespaces"), ("create", "deployments")),
)
# Ray's autoscaler runs with the head's account.
ALLOWED = {
    "ray-head": {"list pods", "patch pods", "patch rayclusters.ray.io"},
    "ray-worker": set(),
    "mlflow": set(),
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_accepts_every_overlay(overlay: str) -> None:
    """Validate an overlay on the server, where defaults, quotas and CRDs are real."""
    if overlay == "kueue" and not has_kueue():
        pytest.skip(NO_KUEUE)
    documents = list(yaml.safe_load_all(kubectl("kustomize", f"cluster/overlays/{overlay}")))
    arguments = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"]
    answer = kubectl(*arguments, given=yaml.safe_dump_all(documents), check=False)
    accepted = answer.count("serverside-applied")
    record(f"overlay {overlay}", objects=len(documents), accepted=accepted)
    assert accepted == len(documents), answer


def test_a_pod_outside_the_restricted_profile_is_refused() -> None:
    """Check that the namespace enforces its profile at all."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "root"},
        "spec": {"containers": [{"name": "root", "image": "sat-ray", "command": ["true"]}]},
    }
    arguments = ["-n", NAMESPACE, "create", "--dry-run=server", "-f", "-"]
    answer = kubectl(*arguments, given=json.dumps(pod), check=False)
    assert 'violates PodSecurity "restricted' in answer, answer


def test_the_restricted_profile_admits_every_pod_template(restricted: str) -> None:
    """Create a pod from each template of each overlay, in a dry run of the server."""
    admitted = []
    for overlay in OVERLAYS:
        documents = list(yaml.safe_load_all(kubectl("kustomize", f"cluster/overlays/{overlay}")))
        for index, template in enumerate(templates(documents)):
            # The accounts belong to another namespace, and the claims of a StatefulSet are none of
            # its pod's volumes; everything else stays as it is.
            volumes = [*template.spec.get("volumes", []), *_claimed(template)]
            spec = template.spec | {"serviceAccountName": "default", "volumes": volumes}
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"{overlay}-{index}"},
                "spec": spec,
            }
            arguments = ["-n", restricted, "create", "--dry-run=server", "-f", "-"]
            answer = kubectl(*arguments, given=json.dumps(pod), check=False)
            assert "created" in answer, f"{overlay}: {template.where}: {answer}"
            admitted.append(f"{overlay}: {template.where}")
    record("templates that the restricted profile admits", templates=len(admitted))
    assert admitted


def _claimed(template: Pod) -> list[dict[str, Any]]:
    """Return a volume for each name that is mounted and that the template does not have."""
    mounts = [one["name"] for box in template.containers for one in box.get("volumeMounts", [])]
    known = [one["name"] for one in template.spec.get("volumes", [])]
    return [{"name": name, "emptyDir": {}} for name in sorted({*mounts} - {*known})]


@pytest.fixture
def restricted() -> Iterator[str]:
    """Make a namespace with the profile of the product's, without its quota."""
    name = "restricted"
    kubectl("create", "namespace", name)
    try:
        labels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
        kubectl("label", "namespace", name, *labels)
        until(
            lambda: kubectl("-n", name, "get", "serviceaccounts", "-o", "name"),
            what="the namespace's account",
            seconds=60,
        )
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def test_no_secret_is_in_a_log_an_event_or_a_pod() -> None:
    """Look for every value of the namespace's secrets."""
    listed = json.loads(kubectl("-n", NAMESPACE, "get", "secrets", "-o", "json"))["items"]
    values = {
        f"{one['metadata']['name']}/{key}": base64.b64decode(value).decode()
        for one in listed
        for key, value in one["data"].items()
    }
    # A name that anybody may know is no secret.
    secrets = {name: value for name, value in values.items() if not name.endswith("USERNAME")}
    shown = kubectl("-n", NAMESPACE, "get", "pods,events,configmaps,rayclusters", "-o", "yaml")
    for pod in json.loads(kubectl("-n", NAMESPACE, "get", "pods", "-o", "json"))["items"]:
        shown += kubectl("-n", NAMESPACE, "logs", pod["metadata"]["name"], "--all-containers")
    shown += kubectl("-n", "kuberay-operator", "logs", "deployment/kuberay-operator")
    found = [name for name, value in secrets.items() if value in shown]
    record("secrets in logs, events and specs", looked_for=len(secrets), found=found)
    assert secrets and found == []


@pytest.mark.parametrize("account", ACCOUNTS)
def test_service_accounts_may_do_what_they_need_and_no_more(account: str) -> None:
    """Compare the server's answers for an account with the list of what it needs."""
    user = f"system:serviceaccount:{NAMESPACE}:{account}"
    answers = {
        f"{verb} {kind}": kubectl(
            *("-n", NAMESPACE, "auth", "can-i", verb, kind, f"--as={user}"), check=False
        ).split()[0]
        for verb, kind in QUESTIONS
    }
    record(f"rights of {account}", **answers)
    assert {what for what, answer in answers.items() if answer == "yes"} == ALLOWED[account]


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """Start a pod in another namespace, from the image of Ray's pods."""
    image = pods(HEAD)[0]["spec"]["containers"][0]["image"]
    kubectl("create", "namespace", ELSEWHERE)
    try:
        kubectl(
            *("-n", ELSEWHERE, "run", "stranger", f"--image={image}"),
            *("--image-pull-policy=IfNotPresent", "--command", "--", "sleep", "infinity"),
        )
        kubectl("-n", ELSEWHERE, "wait", "--for=condition=Ready", "pod/stranger", "--timeout=120s")
        yield "stranger"
    finally:
        kubectl("delete", "namespace", ELSEWHERE, "--wait=false")


def test_a_pod_of_another_namespace_reaches_nothing(stranger: str) -> None:
    """Try every port that Ray and MLflow open."""
    head = pods(HEAD)[0]["status"]["podIP"]
    tracking = pods("app.kubernetes.io/name=mlflow")[0]["status"]["podIP"]
    targets = [(head, port) for port in (6379, 8265, 10001, 8080, 44217, 44227)]
    targets.append((tracking, 5000))
    # The store is open to everybody: without this, a broken network would pass the test.
    assert _reached(stranger, [(HOST, S3_PORT)], namespace=ELSEWHERE)
    reached = _reached(stranger, targets, namespace=ELSEWHERE)
    record("ports that another namespace reaches", tried=len(targets), reached=reached)
    assert reached == []


def test_pods_reach_what_they_need_and_nothing_outside() -> None:
    """Try from the head: MLflow, the API server, the store, and ports that no policy opens."""
    head = pods(HEAD)[0]["metadata"]["name"]
    tracking = pods("app.kubernetes.io/name=mlflow")[0]["status"]["podIP"]
    needed = [(tracking, 5000), ("kubernetes.default", 443), (HOST, S3_PORT)]
    assert _reached(head, needed) == [f"{host}:{port}" for host, port in needed]
    with socket.create_server((HOST, 0)) as server:
        outside = [(HOST, server.getsockname()[1]), ("10.200.0.11", 10250)]
        reached = _reached(head, outside)
    record("addresses outside that the head reaches", tried=len(outside), reached=reached)
    assert reached == []


def test_the_head_needs_its_token() -> None:
    """Send a request without the token through a port-forward, as `make submit` does with it."""
    forward = subprocess.Popen(
        ["kubectl", "-n", NAMESPACE, "port-forward", "service/sat-ray-head-svc", "18265:8265"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        status = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}"]
        url = "http://127.0.0.1:18265/api/jobs/"

        def answer() -> str:
            done = subprocess.run([*status, url], capture_output=True, text=True)
            return done.stdout if done.stdout != "000" else ""

        assert until(answer, what="the dashboard", seconds=30) == "401"
    finally:
        forward.terminate()
        forward.wait()


def _reached(pod: str, targets: list[tuple[str, int]], *, namespace: str = NAMESPACE) -> list[str]:
    code = f"""
import socket
for host, port in {targets!r}:
    try:
        socket.create_connection((host, port), timeout=3).close()
        print(f"{{host}}:{{port}}")
    except OSError:
        pass
"""
    return python_in(pod, code, namespace=namespace).splitlines()
