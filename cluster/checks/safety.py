"""What may run in the namespace, and what may be written into a manifest. Same shape as rules.py.

Checkov was considered instead and left out. Version 3.3.30 installs 96 packages, pins boto3 1.35.49
(this project needs a newer one), and so wants an environment and a lock file of its own. Its
checks cover pods of Deployments, Jobs and the like, but neither the pods inside a RayCluster
nor the autoscaler beside them, and it needs kubectl or kustomize to render overlays. Of the
ten rules below it could replace one and a half: unprivileged_pods and bounded_containers.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from cluster.checks.documents import Document, clusters, named, of_kind, pods, versions

SECRET_NAME = re.compile(r"(password|secret|token|access_key|credential)", re.IGNORECASE)
URI_WITH_LOGIN = re.compile(r"[a-z0-9+]+://[^/\s:@]+:[^/\s@]+@")
PRIVATE = [
    ipaddress.ip_network(block)
    for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
]
POD_IDENTITY_AGENT = ipaddress.ip_network("169.254.170.23/32")
"""Of EKS: it gives a pod the role of the pod's own service account, and nothing of the node."""
LONG_RUNNING = ("Deployment", "StatefulSet")


def unprivileged_pods(documents: list[Document]) -> Iterator[str]:
    """Require what the namespace's restricted profile enforces,
    sidecars of the operator included.
    """
    for pod in pods(documents):
        security = pod.spec.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
            yield f"{pod.where}: runAsNonRoot and a non-zero runAsUser are missing"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.where}: seccompProfile is not RuntimeDefault"
        for container in pod.containers:
            yield from _container(
                f"{pod.where}, {container['name']}", container.get("securityContext", {})
            )
        if pod.ray and pod.spec["containers"][0].get("securityContext", {}).get(
            "readOnlyRootFilesystem"
        ):
            yield f"{pod.where}: Ray writes to its root filesystem"
    for cluster in clusters(documents):
        if cluster.autoscaling:
            options = cluster.spec.get("autoscalerOptions", {})
            yield from _container(
                f"{cluster.where}, autoscaler", options.get("securityContext", {})
            )


def _container(where: str, security: Document) -> Iterator[str]:
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: allowPrivilegeEscalation is not false"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield f"{where}: capabilities are not dropped"


def bounded_containers(documents: list[Document]) -> Iterator[str]:
    """Require memory limits, pinned images, and probes on servers of our own."""
    for pod in pods(documents):
        for container in pod.containers:
            where, image = f"{pod.where}, {container['name']}", container["image"]
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{where}: no memory limit"
            if image not in versions().values():
                yield f"{where}: image {image} is not in versions.env"
        if pod.where.startswith(LONG_RUNNING):
            for container in pod.spec["containers"]:
                if missing := {"readinessProbe", "livenessProbe"} - set(container):
                    yield f"{pod.where}, {container['name']}: no {sorted(missing)}"


def secrets_by_reference(documents: list[Document]) -> Iterator[str]:
    """Require that no manifest carries a secret's value."""
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Secret":
            yield f"{where}: Secrets are created by hand or by a secret store, never committed"
        for name, value in _strings(document):
            if URI_WITH_LOGIN.search(value):
                yield f"{where}: {name} holds a login inside a URI"
        for name, value in (
            (document.get("data") or {}).items() if document["kind"] == "ConfigMap" else ()
        ):
            if SECRET_NAME.search(name) and value:
                yield f"{where}: {name} looks like a secret and stands in a ConfigMap"
    for pod in pods(documents):
        for container in pod.containers:
            for variable in container.get("env", []):
                if SECRET_NAME.search(variable["name"]) and "value" in variable:
                    yield (
                        f"{pod.where}, {container['name']}: {variable['name']} has a literal value"
                    )


def closed_network(documents: list[Document]) -> Iterator[str]:
    """Require a deny-all policy, policies of our own for every pod,
    and services inside the cluster only.
    """
    policies = of_kind(documents, "NetworkPolicy")
    deny = [
        p
        for p in policies
        if p["spec"].get("podSelector") == {} and not {"ingress", "egress"} & set(p["spec"])
    ]
    if not any({"Ingress", "Egress"} <= set(p["spec"].get("policyTypes", [])) for p in deny):
        yield "no NetworkPolicy denies everything by default"
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                yield f"NetworkPolicy {policy['metadata']['name']}: ingress from everywhere"
        for rule in policy["spec"].get("egress", []):
            for block in (peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer):
                if not _is_private(block["cidr"]):
                    yield (
                        f"NetworkPolicy {policy['metadata']['name']}: {block['cidr']} reaches "
                        "beyond private networks"
                    )
            if not rule.get("to"):
                yield f"NetworkPolicy {policy['metadata']['name']}: egress to everywhere"
    for service in of_kind(documents, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield (
                f"Service {service['metadata']['name']}: {service['spec']['type']} leaves the "
                "cluster"
            )
    for cluster in clusters(documents):
        if cluster.head.get("serviceType", "ClusterIP") != "ClusterIP" or cluster.head.get(
            "enableIngress"
        ):
            yield f"{cluster.where}: the dashboard (job submission) leaves the cluster"


def _is_private(cidr: str) -> bool:
    """Say whether a block lies inside a private network or is the agent of EKS Pod Identity;
    the cloud's metadata address is neither.
    """
    network = ipaddress.ip_network(cidr)
    return network == POD_IDENTITY_AGENT or any(
        network.version == own.version and network.subnet_of(own) for own in PRIVATE
    )  # type: ignore[arg-type]


def undisturbed_pods(documents: list[Document]) -> Iterator[str]:
    """Require that neither Karpenter nor the cluster autoscaler moves a Ray pod:
    Ray's idle timeout ends empty ones.
    """
    wanted = {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    for cluster in clusters(documents):
        for where, group in cluster.every_group:
            annotations = group["template"].get("metadata", {}).get("annotations", {})
            for name, value in wanted.items():
                if annotations.get(name) != value:
                    yield f"{where}: {name} is not {value!r}, so its work is moved away"


def ranked_pods(documents: list[Document]) -> Iterator[str]:
    """Require a priority of ours on every pod, higher for what all others need."""
    classes = {d["metadata"]["name"]: d["value"] for d in of_kind(documents, "PriorityClass")}
    for pod in pods(documents):
        name = pod.spec.get("priorityClassName", "")
        if name not in classes:
            yield f"{pod.where}: priorityClassName {name!r} is not among {sorted(classes)}"
        elif pod.ray and "group head" not in pod.where and classes[name] >= max(classes.values()):
            yield f"{pod.where}: a worker ranks as high as the head"


def bounded_namespace(documents: list[Document]) -> Iterator[str]:
    """Require one quota, which everything fits into, and which lets no service out."""
    quotas = of_kind(documents, "ResourceQuota")
    if len(quotas) != 1:
        yield f"{len(quotas)} ResourceQuotas; one bounds the namespace"
        return
    hard = quotas[0]["spec"]["hard"]
    for kind in ("services.loadbalancers", "services.nodeports"):
        if hard.get(kind) != "0":
            yield f"ResourceQuota: {kind} is not 0"
    for name, needed in _most(documents).items():
        allowed = quantity(str(hard.get(f"requests.{name}", "0")))
        if needed > allowed:
            yield (
                f"ResourceQuota: requests.{name} allows {allowed:g}, and all pods together need "
                f"{needed:g}"
            )


def _most(documents: list[Document]) -> dict[str, float]:
    """Return what all pods request where every group has its largest size."""
    total = {"cpu": 0.0, "memory": 0.0, "nvidia.com/gpu": 0.0}
    counts = {
        f"{c.where}, group {g['groupName']}": g.get("maxReplicas", 1)
        for c in clusters(documents)
        for g in c.groups
    }
    for pod in pods(documents):
        for container in pod.spec["containers"]:
            for name, amount in _requests(container):
                total[name] += counts.get(pod.where, 1) * amount
    for cluster in clusters(documents):
        if cluster.autoscaling:
            for name, amount in _requests(cluster.spec.get("autoscalerOptions", {})):
                total[name] += amount
    return {name: amount for name, amount in total.items() if amount}


def _requests(container: Document) -> Iterator[tuple[str, float]]:
    """Yield what a container, or the head's autoscaler, requests of what the quota counts."""
    for name, amount in container.get("resources", {}).get("requests", {}).items():
        if name in ("cpu", "memory", "nvidia.com/gpu"):
            yield name, quantity(str(amount))


def quantity(text: str) -> float:
    """Read a quantity of Kubernetes: 500m, 14, 16Gi."""
    number, unit = re.fullmatch(r"([0-9.]+)(m|[KMGT]i)?", text).groups()  # type: ignore[union-attr]
    return (
        float(number)
        * {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]
    )


def head_budget(documents: list[Document]) -> Iterator[str]:
    """Require that a disruption budget keeps one head, and touches no worker."""
    for budget in of_kind(documents, "PodDisruptionBudget"):
        name, spec = budget["metadata"]["name"], budget["spec"]
        if spec.get("minAvailable") != 1:
            yield f"PodDisruptionBudget {name}: minAvailable is not the integer 1"
        if spec["selector"].get("matchLabels", {}).get("ray.io/node-type") != "head":
            yield f"PodDisruptionBudget {name}: it would hold workers back from draining"


def mlflow_server(documents: list[Document]) -> Iterator[str]:
    """Require that the server migrates first, wants a login, answers to the name clients use,
    proxies artifacts, and keeps nothing in its pod.
    """
    for deployment in (
        d for d in of_kind(documents, "Deployment") if d["metadata"]["name"] == "mlflow"
    ):
        settings = named(documents, "ConfigMap", "mlflow-config")["data"]
        spec = deployment["spec"]["template"]["spec"]
        arguments = spec["containers"][0].get("args", [])
        kept = _kept_folders(spec)
        for name in ("MLFLOW_BACKEND_STORE_URI", "basic_auth.ini"):
            stores = ("postgresql+psycopg://", *(f"sqlite:///{folder}/" for folder in kept))
            if not any(store in settings.get(name, "") for store in stores):
                yield (
                    f"mlflow: {name} names none of {list(stores)}: another driver is not "
                    "installed, and another folder goes with the pod"
                )
        destination = settings.get("MLFLOW_ARTIFACTS_DESTINATION", "")
        if not destination.startswith(("s3://", *(f"{folder}/" for folder in kept))):
            yield (
                f"mlflow: MLFLOW_ARTIFACTS_DESTINATION is {destination!r}; s3:// or a folder on a "
                "PersistentVolumeClaim keeps artifacts"
            )
        if "--app-name=basic-auth" not in arguments:
            yield "mlflow: no login (--app-name=basic-auth is missing)"
        migrations = [" ".join(c.get("command", [])) for c in spec.get("initContainers", [])]
        for what in ("mlflow db upgrade", "mlflow.server.auth db upgrade"):
            if not any(what in command for command in migrations):
                yield f"mlflow: no init container runs {what!r}"
        if settings.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION") != "false":
            yield "mlflow: the job runner costs seven processes"


def _kept_folders(spec: Document) -> list[str]:
    """Return where the first container mounts volumes that outlive its pod."""
    claims = {v["name"] for v in spec.get("volumes", []) if "persistentVolumeClaim" in v}
    mounts = spec["containers"][0].get("volumeMounts", [])
    return [mount["mountPath"] for mount in mounts if mount["name"] in claims]


def allowed_hosts(documents: list[Document]) -> Iterator[str]:
    """Require that host and port of the tracking URI are among the hosts the server accepts,
    and no wildcard.
    """
    uri = named(documents, "ConfigMap", "sat-ray-environment")["data"].get(
        "MLFLOW_TRACKING_URI", ""
    )
    hosts = (
        named(documents, "ConfigMap", "mlflow-config")["data"]
        .get("MLFLOW_SERVER_ALLOWED_HOSTS", "")
        .split(",")
    )
    host = uri.removeprefix("http://").removeprefix("https://").rstrip("/")
    if host not in hosts:
        yield (
            f"{host} (MLFLOW_TRACKING_URI) is not among the allowed hosts {hosts}: every call "
            "would get 403"
        )
    if "localhost:5000" not in hosts:
        yield "localhost:5000 is not among the allowed hosts: the port-forward would get 403"
    if any("*" in entry for entry in hosts):
        yield "a wildcard among the allowed hosts lets DNS rebinding through"


def _strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, name)
    elif isinstance(value, str):
        yield name, value


RULES = (
    unprivileged_pods, bounded_containers, secrets_by_reference, closed_network, head_budget,
    mlflow_server,
    allowed_hosts, undisturbed_pods, ranked_pods, bounded_namespace,
)  # fmt: skip
