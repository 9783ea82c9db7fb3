"""Check a cluster before anything in it is changed: each failure is one line with what to do.

python -m cluster.commands.preflight FILE looks at what the manifests of FILE need, and lets the
API server try them without keeping anything.
"""

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.checks.documents import Document, clusters, of_kind, pods, versions
from cluster.checks.references import SECRETS, mappings
from cluster.commands.kubectl import NAMESPACE, ClusterError, Kubectl, connect

PROFILE = ("pod-security.kubernetes.io/enforce", "restricted")
SECRETS_COMMANDS = "cluster/README.md, Secrets, has the commands"
OWN_IMAGES = tuple(versions()[name].partition(":")[0] for name in ("RAY_IMAGE", "MLFLOW_IMAGE"))
"""Without a registry before these names nobody can pull them, whatever their tag."""
NODES_LIST_IMAGES = 50
"""A kubelet reports that many images, the largest first."""


def check_kinds(kubectl: Kubectl, documents: list[Document]) -> None:
    """Refuse a cluster that does not serve a kind of the manifests."""
    wanted = {(d["apiVersion"], d["kind"]) for d in documents if "." in d["apiVersion"]}
    for version in sorted({version for version, _ in wanted}):
        served = kubectl.find_api(version)
        kinds = {one["kind"] for one in served["resources"]} if served else set()
        for kind in sorted(kind for found, kind in wanted if found == version):
            if kind not in kinds:
                raise kubectl.refused(
                    f"no {kind} of {version} is served: its CustomResourceDefinition is missing or "
                    f"too old; {_install(version)}, or choose another context"
                )


def _install(version: str) -> str:
    if version.startswith("ray.io/"):
        return f"install KubeRay {versions()['KUBERAY']} (cluster/README.md)"
    return f"install what serves {version.split('/')[0]}"


def check_operator(kubectl: Kubectl) -> None:
    """Refuse a cluster in which no operator of KubeRay runs."""
    found = kubectl.find("deployments.apps", "--all-namespaces")
    if found is None:
        return  # an account of one namespace may not look into the operator's
    operators = [d for d in found["items"] if _is_operator(d["metadata"])]
    if not operators:
        raise kubectl.refused(
            f"KubeRay's operator is not installed; {_install('ray.io/v1')}, or choose another "
            "context"
        )
    if not any(d["status"].get("readyReplicas") for d in operators):
        where = operators[0]["metadata"]
        raise kubectl.refused(
            f"KubeRay's operator has no ready pod; `kubectl --namespace {where['namespace']} "
            f"describe deployment {where['name']}` says why"
        )


def _is_operator(metadata: Document) -> bool:
    names = (metadata["name"], *metadata.get("labels", {}).values())
    return any("kuberay-operator" in name for name in names)


def check_namespace(kubectl: Kubectl, *, labelled: bool) -> None:
    """Refuse a cluster without the namespace, or one whose pods are not held to the profile."""
    found = kubectl.find("namespace", NAMESPACE)
    if found is None:
        raise kubectl.refused(
            f"no namespace {NAMESPACE}; choose another context, or create the namespace and its "
            f"secrets ({SECRETS_COMMANDS})"
        )
    label, wanted = PROFILE
    value = found["metadata"].get("labels", {}).get(label)
    if value != wanted and (labelled or value is not None):
        raise kubectl.refused(
            f"namespace {NAMESPACE} must have the label {label}={wanted}, got {value}; `kubectl "
            f"label --overwrite namespace {NAMESPACE} {label}={wanted}` sets it"
        )


def check_secrets(kubectl: Kubectl, names: list[str]) -> None:
    """Refuse missing Secrets, and Secrets whose keys are missing, empty or end in a newline."""
    for name in names:
        found = kubectl.find("secret", name, f"--namespace={NAMESPACE}")
        if found is None:
            raise kubectl.refused(
                f"no Secret {name} in namespace {NAMESPACE}; create it ({SECRETS_COMMANDS})"
            )
        values = {key: base64.b64decode(text) for key, text in found.get("data", {}).items()}
        for key in sorted(SECRETS.get(name, ())):
            if trouble := _trouble_of(values.get(key)):
                raise kubectl.refused(
                    f"Secret {name} in namespace {NAMESPACE}: {key} {trouble}; create it again "
                    f"({SECRETS_COMMANDS})"
                )


def _trouble_of(value: bytes | None) -> str:
    if value is None:
        return "is missing"
    if not value.strip():
        return "is empty"
    return "ends in a newline" if value.endswith(b"\n") else ""


def secrets_of(documents: list[Document]) -> list[str]:
    """Return the Secrets without which a pod of the manifests does not start."""
    names = {c.spec.get("authOptions", {}).get("secretName") for c in clusters(documents)}
    for key, value in mappings(documents):
        if key in ("secretRef", "secretKeyRef") and not value.get("optional"):
            names.add(value["name"])
        elif key == "secret" and not value.get("optional"):
            names.add(value.get("secretName"))
    return sorted(name for name in names if name)


def check_images(kubectl: Kubectl, documents: list[Document]) -> None:
    """Refuse an image without a registry that no node holds: nobody could pull it."""
    nodes = kubectl.find("nodes")
    if nodes is None:
        return
    lists = [node["status"].get("images", []) for node in nodes["items"]]
    if any(len(images) >= NODES_LIST_IMAGES for images in lists):
        return  # the list may be cut off
    # of an image whose name went to a newer one, a node says `names: null`
    held = {name for images in lists for image in images for name in image.get("names") or ()}
    for image in sorted({c["image"] for pod in pods(documents) for c in pod.containers}):
        names = {image, f"docker.io/library/{image}"}
        if image.partition(":")[0] in OWN_IMAGES and not held & names:
            raise kubectl.refused(
                f"no node holds the image {image}; load it (`kind load docker-image {image}`), or "
                "name your registry in `images:` of your overlay"
            )


def check_trial(kubectl: Kubectl, path: Path) -> None:
    """Let the API server judge the manifests without keeping them."""
    # The autoscaler owns the groups of a cluster that it has changed: only force takes them back.
    trial = ("--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict")
    done = kubectl.run("apply", *trial, f"--filename={path}", seconds=300)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = " ".join(line for line in lines if not line.startswith("Warning:"))
    advice = "correct your overlay"
    if "not declared in schema" in done.stderr or "unknown field" in done.stderr:
        advice = f"if it is a field of ray.io, {_install('ray.io/v1')}; otherwise {advice}"
    raise kubectl.refused(f"the API server refuses {path}: {reason}; {advice}")


def check_manifests(kubectl: Kubectl, path: Path) -> None:
    """Check everything that the manifests of a file need; ClusterError for the first that fails."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    check_kinds(kubectl, documents)
    if of_kind(documents, "RayCluster", "RayJob"):
        check_operator(kubectl)
    check_namespace(kubectl, labelled=False)
    check_secrets(kubectl, secrets_of(documents))
    check_images(kubectl, documents)
    check_trial(kubectl, path)


def check_head(kubectl: Kubectl) -> str:
    """Return the name of the head's pod; ClusterError, with the reason, where it is not ready."""
    check_kinds(kubectl, [{"apiVersion": "ray.io/v1", "kind": "RayCluster"}])
    check_namespace(kubectl, labelled=True)
    cluster = kubectl.find("rayclusters.ray.io", NAMESPACE, f"--namespace={NAMESPACE}")
    if cluster is None:
        raise kubectl.refused(
            f"no RayCluster {NAMESPACE} in namespace {NAMESPACE}; `make cluster-apply OVERLAY=...` "
            "makes it"
        )
    check_secrets(kubectl, secrets_of([cluster]))
    selector = f"ray.io/cluster={NAMESPACE},ray.io/node-type=head"
    found = kubectl.find("pods", f"--namespace={NAMESPACE}", f"--selector={selector}")
    heads = found["items"] if found else []
    for pod in heads:
        if _is_ready(pod) and not _is_ending(pod):
            return str(pod["metadata"]["name"])
    if not heads:
        check_operator(kubectl)
    raise kubectl.refused(f"the head is not ready: {_why_not_ready(kubectl, heads)}")


def _why_not_ready(kubectl: Kubectl, heads: list[Document]) -> str:
    """Return why the head's pod is not ready, and what to do."""
    if not heads:
        reason = _last_warning(kubectl)
        if "exceeded quota" in reason:
            return f"{reason}; raise that ResourceQuota, or end other pods of the namespace"
        more = f"raycluster {NAMESPACE}"
    elif all(_is_ending(pod) for pod in heads):
        name = heads[0]["metadata"]["name"]
        reason = f"its pod {name} is ending, and the operator makes a new one after that"
        more = f"pod {name}"
    else:
        pod = next(pod for pod in heads if not _is_ending(pod))
        reason = next(troubles_of(pod), "it is starting")
        more = f"pod {pod['metadata']['name']}"
    return f"{reason}; `kubectl --namespace {NAMESPACE} describe {more}` says more"


def _is_ending(pod: Document) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _is_ready(pod: Document) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def troubles_of(pod: Document) -> Iterator[str]:
    """Yield why a pod does not start, as the kubelet and the scheduler give it."""
    states = [
        *pod["status"].get("initContainerStatuses", []),
        *pod["status"].get("containerStatuses", []),
    ]
    for state in states:
        waiting = state["state"].get("waiting")
        if waiting and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
            yield f"{state['image']}: {waiting['reason']} ({waiting.get('message', 'no message')})"
    for one in pod["status"].get("conditions", []):
        if one["type"] == "PodScheduled" and one["status"] == "False":
            yield f"no node takes its pod ({one.get('message', one.get('reason'))})"


def _last_warning(kubectl: Kubectl) -> str:
    """Return why the operator made no pod."""
    fields = f"--field-selector=involvedObject.name={NAMESPACE},type=Warning"
    found: Any = kubectl.find("events", f"--namespace={NAMESPACE}", fields)
    events = found["items"] if found else []
    if not events:
        return "the operator has made no pod yet"
    newest = max(events, key=lambda one: one.get("lastTimestamp") or "")
    return f"the operator could not make its pod ({newest['message']})"


def main(arguments: list[str]) -> int:
    """Check a file of manifests; print one line and return 2 where something is not as needed."""
    try:
        kubectl = connect()
        check_manifests(kubectl, Path(arguments[0]))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"context {kubectl.context}: everything that {arguments[0]} needs is there")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
