"""The overlays of the product in sizes and with addresses of the Kubernetes on this machine."""

import json
from typing import Any

import yaml
from scenarios import kubectl

from tests.kubernetes.machine.addons import storage_environment
from tests.kubernetes.machine.settings import BUCKET

Document = dict[str, Any]
MOST_PODS = {"cpu": 2, "gpu-spot": 1, "gpu-on-demand": 1}
IDLE_SECONDS = 60
PENDING_SECONDS = 120  # a pod that waits for its node
HEAD_MIB, WORKER_MIB, AUTOSCALER_MIB, MLFLOW_MIB = 2304, 2464, 320, 1200
STORE = ("AWS_ENDPOINT_URL", "AWS_REGION")  # the variables of the S3 server


def fitted(overlay: str) -> list[Document]:
    """Render an overlay and change sizes, addresses and the recipe of a job, nothing else."""
    documents = list(yaml.safe_load_all(kubectl("kustomize", f"cluster/overlays/{overlay}")))
    for document in documents:
        change = CHANGES.get((document["kind"], document["metadata"]["name"]))
        if change:
            change(document)
    return documents


def _cluster(spec: Document) -> None:
    if "autoscalerOptions" in spec:
        spec["autoscalerOptions"]["resources"] = _size(AUTOSCALER_MIB, cpu="100m")
    _container(spec["headGroupSpec"])["resources"] = _size(HEAD_MIB, most_cpus=2)
    for group in spec["workerGroupSpecs"]:
        most = MOST_PODS[group["groupName"]]
        gpus = {"nvidia.com/gpu": "1"} if group["groupName"].startswith("gpu") else {}
        for name in ("replicas", "minReplicas", "maxReplicas"):
            group |= {name: min(group[name], most)} if name in group else {}
        if "idleTimeoutSeconds" in group:
            group["idleTimeoutSeconds"] = IDLE_SECONDS
        # A training takes two CPUs: of two pods, or of one where the size is fixed at one.
        cpus = 1 if gpus else most // group["maxReplicas"]
        group["rayStartParams"]["num-cpus"] = str(cpus)
        _container(group)["resources"] = _size(WORKER_MIB * cpus, most_cpus=cpus, **gpus)


def _job(document: Document) -> None:
    spec = document["spec"]
    spec["entrypoint"] = spec["entrypoint"].replace("digits", "digits_smoke")
    spec["ttlSecondsAfterFinished"] = 30
    submitter = spec["submitterPodTemplate"]["spec"]["containers"][0]
    submitter["resources"] = _size(400, cpu="100m")
    _cluster(spec["rayClusterSpec"])


def _environment(document: Document) -> None:
    groups = json.loads(document["data"]["SAT_RAY_NODE_GROUPS"])
    for group in groups:
        most = MOST_PODS[group["pool"]]
        nodes = min(group["nodes"], most)
        group |= {"nodes": nodes, "CPU": most // nodes}
        group |= {"GPU": 1} if "GPU" in group else {}
    document["data"] |= {
        "SAT_RAY_NODE_GROUPS": json.dumps(groups),
        "SAT_RAY_STORAGE": f"s3://{BUCKET}/sweeps",
        **_store(),
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(PENDING_SECONDS),
    }


def _tracking(document: Document) -> None:
    document["data"] |= {
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        **_store(),
    }


def _store() -> dict[str, str]:
    variables = storage_environment()
    return {name: variables[name] for name in STORE}


def _server(document: Document) -> None:
    spec = document["spec"]["template"]["spec"]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        container["resources"] = _size(MLFLOW_MIB, cpu="200m")


def _redis(document: Document) -> None:
    _container({"template": document["spec"]["template"]})["resources"] = _size(256, cpu="50m")


def _container(group: Document) -> Document:
    container: Document = group["template"]["spec"]["containers"][0]
    return container


def _size(mib: int, *, cpu: str = "500m", most_cpus: int = 1, **devices: str) -> Document:
    memory = f"{mib}Mi"
    return {
        "requests": {"cpu": cpu, "memory": memory, **devices},
        "limits": {"cpu": str(most_cpus), "memory": memory, **devices},
    }


CHANGES = {
    ("RayCluster", "sat-ray"): lambda document: _cluster(document["spec"]),
    ("RayJob", "sat-ray-sweep"): _job,
    ("ConfigMap", "sat-ray-environment"): _environment,
    ("ConfigMap", "mlflow-config"): _tracking,
    ("Deployment", "mlflow"): _server,
    ("StatefulSet", "redis"): _redis,
}
