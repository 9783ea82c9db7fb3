"""What `make cluster-apply` and `make submit` say about a cluster that is not as they need it.

With a real kubectl, and where its programs are here with a real API server.
"""

import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import api_server, kubeconfig, kubectl, kuberay_crds
from cluster_rules import rendered, run, tool
from repository import ROOT

from cluster.checks.documents import CLUSTER, of_kind, versions
from cluster.checks.references import SECRETS
from cluster.commands.kubectl import Kubectl
from cluster.commands.preflight import secrets_of
from cluster.commands.submit import storage_named
from cluster.commands.workers import worker_troubles

LABEL = "pod-security.kubernetes.io/enforce"
OPERATOR = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "kuberay-operator", "namespace": "kuberay-operator"},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "operator", "image": "operator"}]},
        },
    },
}


def ended(config: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one of the commands to its end."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(config.parent),  # kubectl keeps a cache there
        "KUBECONFIG": str(config),
    }
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def said(config: Path, *command: str, **variables: str) -> str:
    """Return the one line with which a command refuses."""
    done = ended(config, *command, **variables)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


APPLY = ("cluster.commands.preflight", "manifests.yaml")
SUBMIT = ("cluster.commands.submit", "digits_smoke")


@pytest.mark.parametrize("command", [APPLY, SUBMIT], ids=["apply", "submit"])
class TestWithoutAServer:
    """A cluster that does not answer is one line, whichever command comes to it."""

    def test_no_kubectl(self, tmp_path, command):
        assert "kubectl is not installed" in said(tmp_path, *command, PATH=str(tmp_path))

    def test_no_current_context(self, tmp_path, command):
        tool("kubectl")
        assert "kubectl has no current context" in said(tmp_path / "none", *command)

    def test_an_api_server_that_is_away(self, tmp_path, command):
        tool("kubectl")
        line = said(kubeconfig(tmp_path, "https://127.0.0.1:1"), *command)
        assert line.startswith("context test: its API server does not answer")
        assert "refused" in line and "kubectl config use-context NAME" in line


def secret(name: str, **changes: str) -> dict[str, Any]:
    """Return a Secret with every key that the README gives it."""
    data = dict.fromkeys(SECRETS[name], "value") | changes
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "sat-ray"},
        "stringData": data,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with api_server(tmp_path_factory.mktemp("api")) as config:
        yield config


def write(tmp_path: Path, overlay: str) -> Path:
    """Write an overlay as `make cluster-apply` does."""
    path = tmp_path / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(rendered(overlay)))
    return path


def apply(config: Path, *documents: dict[str, Any]) -> None:
    """Put documents on the server."""
    for document in documents:
        kubectl(config, "apply", "--server-side", "--force-conflicts", "-f", "-", given=document)


def set_status(config: Path, document: dict[str, Any], status: dict[str, Any]) -> None:
    """Write the status that a controller or a kubelet would write."""
    metadata = document["metadata"]
    names = [document["kind"].lower(), metadata["name"]]
    where = ["-n", metadata["namespace"]] if "namespace" in metadata else []
    patch = json.dumps({"status": status})
    kubectl(config, *where, "patch", *names, "--subresource=status", "--type=merge", "-p", patch)


def install_crds(config: Path) -> None:
    """Install KubeRay's CRDs and wait until the server has them."""
    for crd in kuberay_crds():
        kubectl(config, "apply", "--server-side", "-f", str(crd))
        established = ["wait", "-f", str(crd), "--for=condition=Established"]
        # kubectl fails at once while the new object has no conditions yet.
        deadline = time.monotonic() + 60
        while kubectl(config, *established, check=False).returncode:
            assert time.monotonic() < deadline, f"{crd.name} is not established"
            time.sleep(1)


@pytest.mark.kubernetes
def test_each_thing_that_is_missing_is_one_line_until_the_manifests_are_accepted(server, tmp_path):
    """Start from an empty cluster and mend, step by step, what the line names."""
    path = write(tmp_path, "laptop")
    command = ("cluster.commands.preflight", str(path))

    line = said(server, *command)
    assert "no RayCluster of ray.io/v1 is served" in line
    assert f"install KubeRay {versions()['KUBERAY']}" in line
    assert "no RayCluster of ray.io/v1 is served" in said(server, *SUBMIT)

    install_crds(server)

    assert "KubeRay's operator is not installed" in said(server, *command)
    kubectl(server, "create", "namespace", "kuberay-operator")
    apply(server, OPERATOR)
    assert "KubeRay's operator has no ready pod" in said(server, *command)
    set_status(server, OPERATOR, {"replicas": 1, "readyReplicas": 1})

    assert "no namespace sat-ray" in said(server, *command)
    kubectl(server, "create", "namespace", "sat-ray")
    assert f"must have the label {LABEL}=restricted, got None" in said(server, *SUBMIT)
    kubectl(server, "label", "namespace", "sat-ray", f"{LABEL}=baseline")
    assert f"must have the label {LABEL}=restricted, got baseline" in said(server, *command)
    kubectl(server, "label", "--overwrite", "namespace", "sat-ray", f"{LABEL}=restricted")

    for name in secrets_of(rendered("laptop")):
        assert f"no Secret {name} in namespace sat-ray" in said(server, *command)
        apply(server, secret(name))

    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}
    apply(server, node)
    held: list[dict[str, Any]] = [{"sizeBytes": 1}]  # its name went to a newer image
    # In the order of their names, as they are missed.
    for image in sorted((versions()["RAY_IMAGE"], versions()["MLFLOW_IMAGE"])):
        assert f"no node holds the image {image}; load it (`kind load" in said(server, *command)
        held.append({"names": [f"docker.io/library/{image}"], "sizeBytes": 1})
        set_status(server, node, {"images": held})

    other = tmp_path / "other.yaml"
    other.write_text(path.read_text().replace(versions()["RAY_IMAGE"], "sat-ray:other"))
    wanted = "no node holds the image sat-ray:other"
    assert wanted in said(server, "cluster.commands.preflight", str(other))

    done = ended(server, *command)
    assert done.returncode == 0, done.stderr
    left = kubectl(server, "-n", "sat-ray", "get", "configmaps,rayclusters", "-o", "name").stdout
    assert "raycluster" not in left and "sat-ray-environment" not in left, "it only tried"

    # A field that the CRD lacks
    documents = rendered("laptop")
    of_kind(documents, "RayCluster")[0]["spec"]["fieldOfTomorrow"] = 1
    path.write_text(yaml.safe_dump_all(documents))
    line = said(server, *command)
    assert "fieldOfTomorrow" in line and "install KubeRay" in line


@pytest.mark.kubernetes
def test_a_head_that_does_not_start_is_explained_before_a_job_is_submitted(server):
    documents = rendered("laptop")
    (cluster,) = of_kind(documents, "RayCluster")
    install_crds(server)
    operators = {"metadata": {"name": "kuberay-operator"}, "apiVersion": "v1", "kind": "Namespace"}
    apply(server, operators, OPERATOR)
    set_status(server, OPERATOR, {"replicas": 1, "readyReplicas": 1})
    apply(server, *of_kind(documents, "Namespace", "ServiceAccount", "PriorityClass"))
    apply(server, secret("sat-ray-auth"))
    assert "no RayCluster sat-ray in namespace sat-ray" in said(server, *SUBMIT)
    apply(server, cluster)
    client = "sat-ray-mlflow-client"  # without it no worker would ever start
    kubectl(server, "-n", "sat-ray", "delete", "secret", client, "--ignore-not-found")
    assert f"no Secret {client}" in said(server, *SUBMIT)
    apply(server, secret(client))
    assert "the operator has made no pod yet" in said(server, *SUBMIT)

    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "quota", "namespace": "sat-ray"},
        "type": "Warning",
        "message": "exceeded quota: sat-ray",
        "involvedObject": {"kind": "RayCluster", "name": "sat-ray", "namespace": "sat-ray"},
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    apply(server, event)
    line = said(server, *SUBMIT)
    assert "could not make its pod (exceeded quota: sat-ray); raise that ResourceQuota" in line

    group = cluster["spec"]["headGroupSpec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "sat-ray-head",
            "namespace": "sat-ray",
            "labels": {"ray.io/cluster": "sat-ray", "ray.io/node-type": "head"},
        },
        "spec": group["spec"],
    }
    apply(server, pod)
    assert "the head is not ready: it is starting" in said(server, *SUBMIT)
    unplaced = {"type": "PodScheduled", "status": "False", "message": "Insufficient memory"}
    set_status(server, pod, {"conditions": [unplaced]})
    assert "no node takes its pod (Insufficient memory)" in said(server, *SUBMIT)
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    state = {
        "name": "ray-head",
        "image": versions()["RAY_IMAGE"],
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": waiting},
    }
    set_status(server, pod, {"conditions": [], "containerStatuses": [state]})
    line = said(server, *SUBMIT)
    assert f"{versions()['RAY_IMAGE']}: ImagePullBackOff (not found)" in line

    kubectl(server, "-n", "sat-ray", "delete", "secret", "sat-ray-auth")
    assert "no Secret sat-ray-auth" in said(server, *SUBMIT)
    apply(server, secret("sat-ray-auth", auth_token="value\n"))
    assert "auth_token ends in a newline" in said(server, *SUBMIT)
    apply(server, secret("sat-ray-auth", auth_token=""))
    assert "auth_token is empty" in said(server, *SUBMIT)

    apply(server, secret("sat-ray-auth"))
    finalizer = {"metadata": {"finalizers": ["tests.example.com/wait"]}}
    patch = ("patch", "pod", "sat-ray-head", "--type=merge", "-p", json.dumps(finalizer))
    kubectl(server, "-n", "sat-ray", *patch)
    kubectl(server, "-n", "sat-ray", "delete", "pod", "sat-ray-head", "--wait=false")
    assert "its pod sat-ray-head is ending" in said(server, *SUBMIT)


@pytest.mark.kubernetes
def test_a_worker_that_does_not_start_is_explained_while_a_sweep_waits(server, monkeypatch):
    """An image that cannot be pulled, and a quota that refused a pod now or an hour ago."""
    monkeypatch.setenv("KUBECONFIG", str(server))
    monkeypatch.setenv("PATH", str(Path(tool("kubectl")).parent))
    space = {"metadata": {"name": "sat-ray"}, "apiVersion": "v1", "kind": "Namespace"}
    labels = {"ray.io/cluster": "sat-ray", "ray.io/node-type": "worker"}
    named = {"namespace": "sat-ray", "name": "worker", "labels": labels}
    spec = {"containers": [{"name": "ray-worker", "image": "absent"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec}
    apply(server, space)
    account = {"apiVersion": "v1", "kind": "ServiceAccount"}
    apply(server, account | {"metadata": {"name": "default", "namespace": "sat-ray"}})
    apply(server, pod)
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    status = {"name": "ray-worker", "image": "absent", "imageID": "", "ready": False}
    state = status | {"restartCount": 0, "state": {"waiting": waiting}}
    set_status(server, pod, {"containerStatuses": [state]})
    for age in (0, 3600):
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"quota-{age}", "namespace": "sat-ray"},
            "type": "Warning",
            "reason": "FailedToCreateWorkerPod",
            "message": f"exceeded quota {age} s ago",
            "involvedObject": {"kind": "RayCluster", "name": "sat-ray", "namespace": "sat-ray"},
            "lastTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - age)),
        }
        apply(server, event)
    assert worker_troubles(Kubectl("test")) == [
        "a worker does not start: absent: ImagePullBackOff (not found)",
        "the operator cannot make a worker's pod (exceeded quota 0 s ago)",
    ]


def test_the_storage_that_is_tried_is_the_one_that_the_options_name():
    assert storage_named(["--training.epochs", "1"]) == ""
    assert storage_named(["--storage", "s3://a/b", "--training.epochs", "1"]) == "s3://a/b"
    assert storage_named(["--dry-run", "--storage=s3://a/b"]) == "s3://a/b"


def test_the_secrets_of_an_overlay_are_those_that_its_pods_need():
    assert secrets_of(rendered("laptop")) == [
        "sat-ray-auth",
        "sat-ray-mlflow-admin",
        "sat-ray-mlflow-client",
    ]
    assert set(secrets_of(rendered("gcs-fault-tolerance"))) == set(SECRETS) - {"sat-ray-s3"}


@pytest.mark.kubernetes
def test_the_laptop_gets_its_secrets_once(server):
    apply(
        server, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kuberay-operator"}}
    )
    apply(server, OPERATOR)
    for name in secrets_of(rendered("laptop")):
        kubectl(
            server, "-n", "sat-ray", "delete", "secret", name, "--ignore-not-found", check=False
        )
    found = []
    for _ in range(2):
        run(CLUSTER / "commands" / "laptop.sh", "prepare", env={"KUBECONFIG": str(server)})
        found.append({name: values(server, name) for name in secrets_of(rendered("laptop"))})
    assert found[0] == found[1]
    assert {name: set(keys) for name, keys in found[0].items()} == {
        name: SECRETS[name] for name in found[0]
    }
    admin, client = found[0]["sat-ray-mlflow-admin"], found[0]["sat-ray-mlflow-client"]
    assert client["MLFLOW_TRACKING_USERNAME"] == "admin"
    assert client["MLFLOW_TRACKING_PASSWORD"] == admin["MLFLOW_AUTH_ADMIN_PASSWORD"]
    assert all(
        value == value.strip() != "" for keys in found[0].values() for value in keys.values()
    )


def values(config: Path, name: str) -> dict[str, str]:
    """Return what a Secret holds."""
    found = kubectl(config, "-n", "sat-ray", "get", "secret", name, "-o", "json").stdout
    data = json.loads(found)["data"]
    return {key: base64.b64decode(text).decode() for key, text in data.items()}


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (["images/local.sh"], "no Docker engine and no buildah: start Docker, or apt-get install"),
        (["commands/laptop.sh", "kind"], "no docker on the PATH; install it"),
        (["commands/laptop.sh", "prepare"], "no kubectl on the PATH; install it"),
        (["commands/laptop.sh"], "usage: cluster/commands/laptop.sh prepare | kind"),
    ],
)
def test_a_program_that_is_missing_is_named(tmp_path, command, line):
    for name in ("bash", "dirname", "sed", "env"):
        (tmp_path / name).symlink_to(tool(name))
    script = str(CLUSTER / command[0])
    done = subprocess.run(
        [script, *command[1:]], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == 1
