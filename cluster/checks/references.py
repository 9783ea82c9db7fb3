"""Every name in a manifest must lead somewhere: objects, keys, ports, volumes, labels.

Same shape as rules.py. Left out is what kustomize or the API server refuses at once with a clear
message. What is here fails late and silently: the operator creates the pods of a RayCluster
after `kubectl apply` has succeeded, and a Service or a budget that selects nothing is valid.
Policy linters do not look into a RayCluster and do not have the README's list of Secrets.
"""

from collections.abc import Iterator
from typing import Any

from cluster.checks.documents import Document, clusters, of_kind, pods

# Created by the commands in README.md, never by a manifest. Each key is used by name or as a
# variable.
SECRETS = {
    "sat-ray-auth": {"auth_token"},
    "sat-ray-mlflow-client": {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"},
    "sat-ray-mlflow-database": {
        "PGHOST",
        "PGPORT",
        "PGDATABASE",
        "PGUSER",
        "PGPASSWORD",
        "PGSSLMODE",
    },
    "sat-ray-mlflow-admin": {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"},
    "sat-ray-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "sat-ray-redis": {"password"},
}


def known_sources(documents: list[Document]) -> Iterator[str]:
    """Require that ConfigMaps and claims are in the same rendering and
    that Secrets (and keys) are ones the README creates.
    """
    config_maps = {d["metadata"]["name"]: d["data"] for d in of_kind(documents, "ConfigMap")}
    claims = {d["metadata"]["name"] for d in of_kind(documents, "PersistentVolumeClaim")}
    for document in documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        for key, value in mappings(document):
            match key:
                case "configMapRef" if value["name"] not in config_maps:
                    yield f"{where}: ConfigMap {value['name']} does not exist"
                case "configMap" if value.get("name") not in config_maps:
                    yield f"{where}: ConfigMap {value.get('name')} does not exist"
                case "configMap":
                    for item in value.get("items", []):
                        if item["key"] not in config_maps[value["name"]]:
                            yield f"{where}: ConfigMap {value['name']} has no key {item['key']}"
                case "persistentVolumeClaim" if value["claimName"] not in claims:
                    yield f"{where}: PersistentVolumeClaim {value['claimName']} does not exist"
                case "secretRef" if value["name"] not in SECRETS:
                    yield f"{where}: Secret {value['name']} is not one the README creates"
                case "secretKeyRef" if value["key"] not in SECRETS.get(value["name"], ()):
                    yield (
                        f"{where}: Secret {value['name']} with key {value['key']} is not one the "
                        "README creates"
                    )
                case "secret" if value.get("secretName") not in SECRETS:
                    yield f"{where}: Secret {value.get('secretName')} is not one the README creates"
    for cluster in clusters(documents):
        name = cluster.spec.get("authOptions", {}).get("secretName")
        if name is not None and "auth_token" not in SECRETS.get(name, ()):
            yield f"{cluster.where}: the token's Secret {name} has no key auth_token"


def service_accounts(documents: list[Document]) -> Iterator[str]:
    """Require that every pod names an account that exists,
    and mounts a token only where it is needed.
    """
    accounts = {d["metadata"]["name"]: d for d in of_kind(documents, "ServiceAccount")}
    for pod in pods(documents):
        name = pod.spec.get("serviceAccountName")
        if name is None and pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: the default account's token would be mounted"
        if name is not None and name not in accounts:
            yield f"{pod.where}: ServiceAccount {name} does not exist"
        is_head = pod.metadata.get("labels", {}).get("ray.io/node-type") == "head"
        if (
            name in accounts
            and accounts[name].get("automountServiceAccountToken", True)
            and not is_head
        ):
            yield f"{pod.where}: only the head's autoscaler needs the token that {name} mounts"


def mounted_volumes(documents: list[Document]) -> Iterator[str]:
    """Require that every mount has its volume and every volume a mount; a schema sees neither."""
    claims = {
        f"StatefulSet {d['metadata']['name']}": {
            claim["metadata"]["name"] for claim in d["spec"].get("volumeClaimTemplates", [])
        }
        for d in of_kind(documents, "StatefulSet")
    }
    for pod in pods(documents):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | claims.get(
            pod.where, set()
        )
        mounts = {
            mount["name"]
            for container in pod.containers
            for mount in container.get("volumeMounts", [])
        }
        for name in sorted(mounts - volumes):
            yield f"{pod.where}: volume {name} is mounted but not declared"
        for name in sorted(volumes - mounts):
            yield f"{pod.where}: volume {name} is declared but not mounted"


def selected_pods(documents: list[Document]) -> Iterator[str]:
    """Require that services, budgets, policies and probes select pods and ports that exist."""
    templates = list(pods(documents))
    labels = [pod.metadata.get("labels", {}) for pod in templates]
    for service in of_kind(documents, "Service"):
        name = service["metadata"]["name"]
        chosen = [
            p
            for p in templates
            if _subset(service["spec"]["selector"], p.metadata.get("labels", {}))
        ]
        if not chosen:
            yield f"Service {name}: its selector matches no pod"
        for port in service["spec"]["ports"]:
            if chosen and not any(
                _has_port(pod.spec, port.get("targetPort", port["port"])) for pod in chosen
            ):
                target = port.get("targetPort", port["port"])
                yield f"Service {name}: no selected pod has port {target}"
    for budget in of_kind(documents, "PodDisruptionBudget"):
        if not any(_subset(budget["spec"]["selector"]["matchLabels"], own) for own in labels):
            yield f"PodDisruptionBudget {budget['metadata']['name']}: its selector matches no pod"
    for pod in templates:
        for container in pod.containers:
            for probe in (container[key] for key in container if key.endswith("Probe")):
                port = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                if port is not None and not _has_port({"containers": [container]}, port):
                    yield (
                        f"{pod.where}: a probe uses port {port}, which {container['name']} "
                        "does not have"
                    )


def mappings(value: Any) -> Iterator[tuple[str, Document]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict):
                yield key, item
            yield from mappings(item)
    elif isinstance(value, list):
        for item in value:
            yield from mappings(item)


def _subset(selector: Document, labels: Document) -> bool:
    return selector.items() <= labels.items()


def _has_port(spec: Document, port: int | str) -> bool:
    ports = [item for container in spec["containers"] for item in container.get("ports", [])]
    return any(port in (item.get("name"), item["containerPort"]) for item in ports)


RULES = (
    known_sources,
    service_accounts,
    mounted_volumes,
    selected_pods,
)
