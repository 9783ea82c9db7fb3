"""Find the parts of manifests that rules speak about."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Document = dict[str, Any]

CLUSTER = Path(__file__).resolve().parents[1]
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet", "Job"}


class Pod(NamedTuple):
    """One pod template: where it stands, its metadata, its spec,
    and whether KubeRay runs Ray in it.
    """

    where: str
    metadata: Document
    spec: Document
    ray: bool

    @property
    def containers(self) -> list[Document]:
        """Return init containers and containers."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


class Cluster(NamedTuple):
    """One RayCluster spec, its own or a RayJob's."""

    where: str
    document: Document
    spec: Document

    @property
    def head(self) -> Document:
        """Return the head's group."""
        return self.spec["headGroupSpec"]

    @property
    def groups(self) -> list[Document]:
        """Return the worker groups."""
        return self.spec.get("workerGroupSpecs", [])

    @property
    def every_group(self) -> Iterator[tuple[str, Document]]:
        """Yield where each group stands, and the group, the head's first."""
        for group in (self.head, *self.groups):
            yield f"{self.where}, group {group.get('groupName', 'head')}", group

    @property
    def autoscaling(self) -> bool:
        """Say whether Ray's autoscaler runs in the head."""
        return bool(self.spec.get("enableInTreeAutoscaling"))


def versions() -> dict[str, str]:
    """Return versions.env as a mapping."""
    lines = (CLUSTER / "versions.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def named(documents: list[Document], kind: str, name: str) -> Document:
    """Return the one document of this kind and name; raises StopIteration where there is none."""
    return next(d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """Return the documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def clusters(documents: list[Document]) -> Iterator[Cluster]:
    """Yield every RayCluster spec, those inside RayJobs included."""
    for document in of_kind(documents, "RayCluster", "RayJob"):
        spec = (
            document["spec"]
            if document["kind"] == "RayCluster"
            else document["spec"].get("rayClusterSpec")
        )
        if spec is not None:
            yield Cluster(f"{document['kind']} {document['metadata']['name']}", document, spec)


def pods(documents: list[Document]) -> Iterator[Pod]:
    """Yield every pod template; those of Ray carry the labels that the operator gives them."""
    for document in of_kind(documents, *WORKLOADS):
        template = document["spec"]["template"]
        yield Pod(
            f"{document['kind']} {document['metadata']['name']}",
            template.get("metadata", {}),
            template["spec"],
            False,
        )
    for cluster in clusters(documents):
        for where, group in cluster.every_group:
            template = group["template"]
            labels = {
                "ray.io/is-ray-node": "yes",
                "ray.io/node-type": "head" if group is cluster.head else "worker",
                "ray.io/cluster": cluster.document["metadata"]["name"],
                **template.get("metadata", {}).get("labels", {}),
            }
            yield Pod(where, {"labels": labels}, template["spec"], True)
    for job in of_kind(documents, "RayJob"):
        if template := job["spec"].get("submitterPodTemplate"):
            yield Pod(
                f"RayJob {job['metadata']['name']}, submitter",
                template.get("metadata", {}),
                template["spec"],
                False,
            )


def announced(text: str) -> list[Document]:
    """Return what SAT_RAY_NODE_GROUPS says; [] where it says nothing or is no JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return []


def announcement(pool: str, nodes: int, cpus: int, gpus: int) -> Document:
    """Return how SAT_RAY_NODE_GROUPS has to name a group."""
    return {"pool": pool, "nodes": nodes, "CPU": cpus} | ({"GPU": gpus} if gpus else {})


def gpus(group: Document) -> int:
    """Return the GPUs of one pod of a Ray group."""
    resources = group["template"]["spec"]["containers"][0].get("resources", {})
    return int(resources.get("limits", {}).get("nvidia.com/gpu", 0))
