"""What the product finds in a cluster: DNS, volumes, KubeRay's operator, and an S3 server."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import processes
from .build import KUEUE_MODULE, OPERATOR, module_folder
from .processes import run
from .settings import (
    BINARIES,
    BUCKET,
    HOST,
    KUBECONFIG,
    KUBERAY,
    KUEUE,
    LOGS,
    MANIFESTS,
    ROOT,
    S3_PORT,
    STATE,
    Node,
)

KUBECTL = (str(BINARIES / "kubectl"), f"--kubeconfig={KUBECONFIG}")
VOLUMES = 4
SCHEMA = "/spec/versions/0/schema/openAPIV3Schema"
PRIORITY = {"type": "integer", "format": "int32"}


def start_storage() -> None:
    """Start the tests' S3 server where pods reach it, with one bucket."""
    folder = STATE / "s3"
    folder.mkdir(exist_ok=True)
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests/helpers/s3_server.py")]
    processes.start("s3", [*program, str(folder), str(S3_PORT), HOST])
    check = ["curl", "--silent", "--output", "/dev/null", f"http://{HOST}:{S3_PORT}/healthcheck"]
    processes.wait_until("the S3 server", check, log=LOGS / "s3.log")
    client = storage_client()
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)


def storage_client() -> Any:
    """Return a boto3 client of the S3 server."""
    boto3 = importlib.import_module("boto3")
    variables = storage_environment()
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def storage_environment() -> dict[str, str]:
    """Return the variables that lead to the S3 server."""
    sys.path.insert(0, str(ROOT / "tests/helpers"))
    server = importlib.import_module("s3_server")
    variables: dict[str, str] = server.environment(S3_PORT)
    return variables | {"AWS_ENDPOINT_URL": f"http://{HOST}:{S3_PORT}"}


def wait_for_nodes(nodes: list[Node]) -> None:
    """Wait until every node is ready for pods."""
    for node in nodes:
        run(*KUBECTL, "wait", "--for=create", f"node/{node.name}", "--timeout=180s")
        run(*KUBECTL, "wait", "--for=condition=Ready", f"node/{node.name}", "--timeout=180s")


def install_basics(nodes: list[Node]) -> None:
    """Install DNS, the permissions of the policies' controller and volumes."""
    apply("--filename", str(MANIFESTS / "access.yaml"))
    apply("--filename", str(MANIFESTS / "dns.yaml"))
    apply("--filename", "-", given=_volumes(nodes[0]))


def install_operator() -> None:
    """Install KubeRay's CRDs and its operator, from the module's own kustomization."""
    source = module_folder(OPERATOR, named_in="addons")
    _install("kuberay", source, "operator.yaml", KUBERAY=KUBERAY)
    # KubeRay 1.7's field. Ray's autoscaler reads it from the RayCluster itself, so the operator of
    # an earlier version need not know it.
    for kind, place in (("rayclusters", "spec"), ("rayjobs", "spec/properties/rayClusterSpec")):
        groups = f"{SCHEMA}/properties/{place}/properties/workerGroupSpecs/items/properties"
        field = {"op": "add", "path": f"{groups}/priority", "value": PRIORITY}
        crd = ("crd", f"{kind}.ray.io", "--type=json", f"--patch={json.dumps([field])}")
        run(*KUBECTL, "patch", *crd)


def install_kueue() -> None:
    """Install Kueue's CRDs, webhooks and controller, from the module's own kustomization."""
    source = module_folder(KUEUE_MODULE, named_in="kueue")
    _install("kueue", source, "kueue.yaml", KUEUE=KUEUE)


def wait_for_addons() -> None:
    """Wait until DNS and the operator run."""
    _wait_for("kube-system", "coredns")
    _wait_for("kuberay-operator", "kuberay-operator")


def wait_for_kueue() -> None:
    """Wait until Kueue runs, whose webhooks RayJobs and RayClusters need from now on."""
    _wait_for("kueue-system", "kueue-controller-manager")


def apply(*arguments: str, given: str | None = None) -> None:
    """Run `kubectl apply --server-side`."""
    run(*KUBECTL, "apply", "--server-side", "--force-conflicts", *arguments, given=given)


def _install(name: str, source: Path, manifest: str, **versions: str) -> None:
    """Apply the `config` folder of a module, changed by one of our manifests."""
    folder = STATE / name
    if not folder.exists():
        shutil.copytree(source / "config", folder, copy_function=shutil.copyfile)
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    (folder / "here").mkdir(exist_ok=True)
    text = (MANIFESTS / manifest).read_text()
    for word, version in versions.items():
        text = text.replace(word, f'"{version}"')
    (folder / "here" / "kustomization.yaml").write_text(text)
    apply("--kustomize", str(folder / "here"))


def _wait_for(namespace: str, deployment: str) -> None:
    status = ("rollout", "status", f"deployment/{deployment}", "--timeout=300s")
    run(*KUBECTL, "--namespace", namespace, *status)


def _volumes(node: Node) -> str:
    parts = []
    for index in range(VOLUMES):
        folder = node.folder / "volumes" / str(index)
        folder.mkdir(parents=True, exist_ok=True)
        parts.append(
            f"""\
apiVersion: v1
kind: PersistentVolume
metadata: {{name: local-{index}}}
spec:
  capacity: {{storage: 20Gi}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Delete
  storageClassName: standard
  local: {{path: {folder}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions:
            - {{key: kubernetes.io/hostname, operator: In, values: [{node.name}]}}
"""
        )
    return "---\n".join(parts)
