"""What the product finds in a cluster: DNS, volumes, KubeRay's operator, and an S3 server."""

import importlib
import json
import shutil
import subprocess
import sys
from typing import Any

from . import processes
from .build import OPERATOR, module_folder
from .processes import run
from .settings import (
    BINARIES,
    BUCKET,
    HOST,
    KUBECONFIG,
    KUBERAY,
    LOGS,
    MANIFESTS,
    ROOT,
    S3_PORT,
    STATE,
    Node,
)

KUBECTL = (str(BINARIES / "kubectl"), f"--kubeconfig={KUBECONFIG}")
VOLUMES = 4
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
    folder = STATE / "kuberay"
    if not folder.exists():
        shutil.copytree(module_folder(OPERATOR) / "config", folder, copy_function=shutil.copyfile)
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    (folder / "here").mkdir(exist_ok=True)
    text = (MANIFESTS / "operator.yaml").read_text().replace("KUBERAY", f'"{KUBERAY}"')
    (folder / "here" / "kustomization.yaml").write_text(text)
    apply("--kustomize", str(folder / "here"))
    # KubeRay 1.7's field. Ray's autoscaler reads it from the RayCluster itself, so the operator of
    # an earlier version need not know it.
    group = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/workerGroupSpecs"
    field = {"op": "add", "path": f"{group}/items/properties/priority", "value": PRIORITY}
    crd = ("crd", "rayclusters.ray.io", "--type=json", f"--patch={json.dumps([field])}")
    run(*KUBECTL, "patch", *crd)


def wait_for_addons() -> None:
    """Wait until DNS and the operator run."""
    for namespace, name in (("kube-system", "coredns"), ("kuberay-operator", "kuberay-operator")):
        run(
            *(*KUBECTL, "--namespace", namespace, "rollout", "status", f"deployment/{name}"),
            "--timeout=300s",
        )


def apply(*arguments: str, given: str | None = None) -> None:
    """Run `kubectl apply --server-side`."""
    run(*KUBECTL, "apply", "--server-side", "--force-conflicts", *arguments, given=given)


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
