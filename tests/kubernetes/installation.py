"""Install an overlay on the Kubernetes of this machine, with the servers that it needs outside."""

import base64
import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from faults.parts import Postgres
from fitting import Document, fitted
from scenarios import NAMESPACE, kubectl

from tests.kubernetes.machine.addons import storage_environment
from tests.kubernetes.machine.settings import HOST

Change = Callable[[str], list[Document]]
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@contextmanager
def install(overlay: str, change: Change = fitted) -> Iterator[None]:
    """Put an overlay in the place of what is installed, and remove it at the end.

    change: gives the documents of an overlay.
    """
    remove()
    with tempfile.TemporaryDirectory(prefix="postgres", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)  # the server's user goes through it
        with _database(Path(folder)) as database:
            _install(change(overlay), database)
            yield
            remove()


@contextmanager
def _database(folder: Path) -> Iterator[Postgres]:
    database = Postgres(folder, address=HOST, clients="10.0.0.0/8")
    database.start()
    try:
        yield database
    finally:
        database.kill()


def _install(documents: list[Document], database: Postgres) -> None:
    kubectl("apply", "--server-side", "-f", "cluster/base/namespace.yaml")
    for name, values in _secrets(database).items():
        _create(name, values)
    apply(documents)
    kubectl("-n", NAMESPACE, "rollout", "status", "deployment/mlflow", "--timeout=600s")
    if "RayCluster" in [document["kind"] for document in documents]:
        ready = "--for=condition=HeadPodReady"
        kubectl("-n", NAMESPACE, "wait", "raycluster/sat-ray", ready, "--timeout=600s")


def apply(documents: list[Document]) -> None:
    """Give documents to the API server."""
    text = yaml.safe_dump_all(documents)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=text)


def remove() -> None:
    """Remove the namespace and all that is in it, without the two minutes that a head is given.

    Clusters go first: with Redis, the operator starts a pod that empties it, and in a namespace
    that is being deleted none starts.
    """
    clusters = ("rayjobs,rayclusters", "--all", "--timeout=300s")
    kubectl("-n", NAMESPACE, "delete", *clusters, check=False)
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")
    kubectl("-n", NAMESPACE, "delete", "pods", "--all", "--grace-period=1")
    kubectl("wait", "--for=delete", f"namespace/{NAMESPACE}", "--timeout=300s")


def label(name: str, pool: str) -> None:
    """Put a node into a pool."""
    kubectl("label", "node", name, f"sat-ray/pool={pool}", "--overwrite")


def devices(name: str, count: int) -> None:
    """Let a node advertise GPUs, as NVIDIA's device plugin does."""
    change = {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(count)}
    patch = f"--patch={json.dumps([change])}"
    kubectl("patch", "node", name, "--subresource=status", "--type=json", patch)


def _secrets(database: Postgres) -> dict[str, dict[str, str]]:
    """Return every Secret that the manifests name; sweeps use the administrator's account."""
    password = secrets.token_hex(16)
    store = storage_environment()
    return {
        "sat-ray-auth": {"auth_token": secrets.token_hex(32)},
        "sat-ray-mlflow-admin": {
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        },
        "sat-ray-mlflow-client": {
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": password,
        },
        "sat-ray-mlflow-database": database.environment,
        "sat-ray-s3": {key: store[key] for key in KEYS},
        "sat-ray-redis": {"password": secrets.token_hex(32)},
    }


def _create(name: str, values: dict[str, str]) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "data": data,
    }
    kubectl("apply", "--server-side", "-f", "-", given=json.dumps(secret))
