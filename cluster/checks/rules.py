"""What KubeRay, Ray and the design of this cluster require of the manifests, beyond any schema.

Each rule takes the rendered documents and yields one sentence per violation.
"""

import json
import re
from collections.abc import Iterator

from cluster.checks.documents import (
    Cluster,
    Document,
    announced,
    announcement,
    clusters,
    gpus,
    named,
    of_kind,
    pods,
    versions,
)

STABLE_APIS = {"ray.io": "ray.io/v1", "kueue.x-k8s.io": "kueue.x-k8s.io/v1beta2"}
LONGEST_NAME = {"RayCluster": 53, "RayJob": 47}
GATED_FIELDS = ("networkPolicy", "tlsOptions")
UNBOUNDED = 2**31 - 1
MOST_NODES_PER_GROUP = 64


def stable_api(documents: list[Document]) -> Iterator[str]:
    """Require current API versions, no gated kinds or fields, and names the operator can extend."""
    for document in documents:
        api = document["apiVersion"]
        group = api.partition("/")[0]
        kind, name = document["kind"], document["metadata"]["name"]
        if api != STABLE_APIS.get(group, api):
            yield f"{kind} {name}: {api} is deprecated, use {STABLE_APIS[group]}"
        if group != "ray.io":
            continue
        if kind == "RayCronJob":
            yield f"RayCronJob {name}: behind a feature gate that is off"
        if len(name) > LONGEST_NAME.get(kind, 63) or not re.fullmatch(
            r"[a-z]([-a-z0-9]*[a-z0-9])?", name
        ):
            yield (
                f"{kind} {name}: a name is a DNS label of at most {LONGEST_NAME.get(kind)} "
                "characters"
            )
    for cluster in clusters(documents):
        for field in GATED_FIELDS:
            if field in cluster.spec:
                yield f"{cluster.where}: {field} is behind a feature gate that is off"


def one_ray_version(documents: list[Document]) -> Iterator[str]:
    """Require that rayVersion and every Ray image agree with versions.env."""
    pinned = versions()
    for cluster in clusters(documents):
        if cluster.spec.get("rayVersion") != pinned["RAY"]:
            yield (
                f"{cluster.where}: rayVersion {cluster.spec.get('rayVersion')!r} is not "
                f"{pinned['RAY']}"
            )
    for pod in pods(documents):
        if (pod.ray or "submitter" in pod.where) and pod.spec["containers"][0]["image"] != pinned[
            "RAY_IMAGE"
        ]:
            yield (
                f"{pod.where}: image {pod.spec['containers'][0]['image']} is not "
                f"{pinned['RAY_IMAGE']}"
            )


def token_authentication(documents: list[Document]) -> Iterator[str]:
    """Require mode: token outright; a secretName alone leaves the cluster open."""
    for cluster in clusters(documents):
        if cluster.spec.get("authOptions", {}).get("mode") != "token":
            yield f"{cluster.where}: authOptions.mode is not token, so anyone may submit jobs"


def autoscaler_v2(documents: list[Document]) -> Iterator[str]:
    """Require version v2 in the one place the operator reads, and for pods that v2 may delete."""
    for cluster in clusters(documents):
        containers = cluster.head["template"]["spec"]["containers"]
        variables = {item["name"] for item in containers[0].get("env", [])}
        version = cluster.spec.get("autoscalerOptions", {}).get("version")
        if cluster.autoscaling and version != "v2":
            yield f"{cluster.where}: autoscalerOptions.version is {version!r}, not 'v2'"
        if "RAY_enable_autoscaler_v2" in variables:
            yield (
                f"{cluster.where}: RAY_enable_autoscaler_v2 conflicts with "
                "autoscalerOptions.version"
            )
        for where, group in cluster.every_group:
            restarts = group["template"]["spec"].get("restartPolicy", "Never") != "Never"
            if cluster.autoscaling and restarts:
                yield f"{where}: restartPolicy must be Never or unset"
            if not cluster.autoscaling and {"idleTimeoutSeconds", "priority"} & set(group):
                yield f"{where}: idleTimeoutSeconds and priority need the autoscaler"


def head_without_work(documents: list[Document]) -> Iterator[str]:
    """Require num-cpus and num-gpus "0" on the head, as strings."""
    for cluster in clusters(documents):
        for parameter in ("num-cpus", "num-gpus"):
            if cluster.head.get("rayStartParams", {}).get(parameter) != "0":
                yield (
                    f'{cluster.where}: the head\'s {parameter} is not "0", so work would land '
                    "beside the drivers"
                )


def bounded_groups(documents: list[Document]) -> Iterator[str]:
    """Require a finite maximum everywhere,
    and for GPU groups that start at nothing or have a fixed size.
    """
    for cluster in clusters(documents):
        for group in cluster.groups:
            where = f"{cluster.where}, group {group['groupName']}"
            low = group.get("minReplicas", 0)
            high = group.get("maxReplicas", UNBOUNDED)
            if high > MOST_NODES_PER_GROUP:
                yield (
                    f"{where}: maxReplicas {high} is above {MOST_NODES_PER_GROUP}; left out it "
                    f"means {UNBOUNDED}"
                )
            if gpus(group) and cluster.autoscaling and low != 0:
                yield f"{where}: {low} GPU nodes would never be given back"
            if not cluster.autoscaling and not (low == high == group.get("replicas")):
                yield (
                    f"{where}: without the autoscaler replicas, minReplicas and maxReplicas must "
                    "be equal"
                )


def spot_first(documents: list[Document]) -> Iterator[str]:
    """Require that spot groups outrank on-demand ones; idle GPU nodes must wait 300 to 900 s."""
    for cluster in clusters(documents):
        if not cluster.autoscaling:
            continue
        ranked = [
            (g.get("labels", {}).get("ray.io/market-type"), g.get("priority", 0))
            for g in cluster.groups
            if gpus(g)
        ]
        spot = [priority for market, priority in ranked if market == "spot"]
        others = [priority for market, priority in ranked if market != "spot"]
        if spot and others and min(spot) <= max(others):
            yield (
                f"{cluster.where}: spot priority {min(spot)} does not exceed on-demand "
                f"{max(others)}"
            )
        for group in cluster.groups:
            idle = group.get(
                "idleTimeoutSeconds",
                cluster.spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 60),
            )
            if gpus(group) and not 300 <= idle <= 900:
                yield (
                    f"{cluster.where}, group {group['groupName']}: idle timeout {idle} s is "
                    "outside 300 to 900 s"
                )


def start_parameters(documents: list[Document]) -> Iterator[str]:
    """Require labels and resources where KubeRay reads them."""
    resources = {"num-cpus", "num-gpus", "memory", "resources"}
    for cluster in clusters(documents):
        for where, group in cluster.every_group:
            parameters = group.get("rayStartParams") or {}
            if "labels" in parameters:
                yield f"{where}: labels belong in the group's own labels, not in rayStartParams"
            if group.get("resources") and resources & set(parameters):
                yield f"{where}: resources in both rayStartParams and the group"


def whole_node_pods(documents: list[Document]) -> Iterator[str]:
    """Require requests equal to the limits that Ray counts, and GPU pods on GPU nodes only."""
    for cluster in clusters(documents):
        for where, group in cluster.every_group:
            spec = group["template"]["spec"]
            resources = spec["containers"][0].get("resources", {})
            names = {"cpu", "memory", *resources.get("limits", {}), *resources.get("requests", {})}
            if "num-cpus" in (group.get("rayStartParams") or {}):
                names.remove("cpu")
            for name in sorted(names):
                request, limit = (
                    resources.get(side, {}).get(name) for side in ("requests", "limits")
                )
                if request is None or request != limit:
                    yield (
                        f"{where}: request {request} and limit {limit} of {name} differ; Ray "
                        "counts the limit"
                    )
            if gpus(group) and not (
                spec.get("nodeSelector")
                and any(t.get("key") == "nvidia.com/gpu" for t in spec.get("tolerations", []))
            ):
                yield f"{where}: GPU pods need a nodeSelector and a toleration for nvidia.com/gpu"
            if any(
                mount["mountPath"] == "/dev/shm"
                for mount in spec["containers"][0].get("volumeMounts", [])
            ):
                yield (
                    f"{where}: an own /dev/shm replaces the operator's, which is as large as the "
                    "memory limit"
                )


def graceful_drain(documents: list[Document]) -> Iterator[str]:
    """Require time to drain after SIGTERM, less than the grace period, and no hook in between."""
    for cluster in clusters(documents):
        drain = int(
            _environment(documents, cluster).get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30)
        )
        for group in cluster.groups:
            spec, where = group["template"]["spec"], f"{cluster.where}, group {group['groupName']}"
            grace = spec.get("terminationGracePeriodSeconds", 30)
            if grace < 120 or not 60 <= drain <= grace - 10:
                yield (
                    f"{where}: drain of {drain} s does not fit into a grace period of {grace} s "
                    "(at least 120)"
                )
            if any("preStop" in container.get("lifecycle", {}) for container in spec["containers"]):
                yield f"{where}: a preStop hook runs before SIGTERM and cuts Ray's own drain short"


def announced_groups(documents: list[Document]) -> Iterator[str]:
    """Require that SAT_RAY_NODE_GROUPS names the largest size of each group.

    A driver reads it because Ray's autoscaler does not report nodes that are not up yet.
    """
    for cluster in clusters(documents):
        said = announced(_environment(documents, cluster).get("SAT_RAY_NODE_GROUPS", ""))
        for group in cluster.groups:
            cpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]
            wanted = announcement(
                group.get("labels", {}).get("sat-ray/pool", ""),
                group.get("maxReplicas", UNBOUNDED),
                int(cpus),
                gpus(group),
            )
            if wanted not in said:
                yield (
                    f"{cluster.where}, group {group['groupName']}: SAT_RAY_NODE_GROUPS lacks "
                    f"{json.dumps(wanted)}"
                )
        if len(said) > len(cluster.groups):
            yield (
                f"{cluster.where}: SAT_RAY_NODE_GROUPS names {len(said)} groups of "
                f"{len(cluster.groups)}"
            )


def finishing_jobs(documents: list[Document]) -> Iterator[str]:
    """Require that a RayJob's cluster goes away, by one mechanism, and that retries are bounded."""
    for job in of_kind(documents, "RayJob"):
        spec, where = job["spec"], f"RayJob {job['metadata']['name']}"
        if bool(spec.get("shutdownAfterJobFinishes")) == ("deletionStrategy" in spec):
            yield f"{where}: use exactly one of shutdownAfterJobFinishes and deletionStrategy"
        if spec.get("shutdownAfterJobFinishes") and not spec.get("ttlSecondsAfterFinished"):
            yield f"{where}: ttlSecondsAfterFinished is missing, so logs vanish with the last line"
        if ("clusterSelector" in spec) == ("rayClusterSpec" in spec):
            yield f"{where}: use exactly one of clusterSelector and rayClusterSpec"
        if not 0 <= spec.get("backoffLimit", 0) <= 10:
            yield f"{where}: backoffLimit {spec['backoffLimit']} buys that many clusters"
        if job["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name") and spec.get(
            "rayClusterSpec", {}
        ).get("enableInTreeAutoscaling"):
            yield f"{where}: Kueue admits a fixed size only, turn the autoscaler off"


def external_state(documents: list[Document]) -> Iterator[str]:
    """Require GCS fault tolerance to be set in one place only, its password from a Secret."""
    for cluster in clusters(documents):
        options = cluster.spec.get("gcsFaultToleranceOptions")
        variables = {
            item["name"]
            for item in cluster.head["template"]["spec"]["containers"][0].get("env", [])
        }
        if stray := variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
            yield f"{cluster.where}: {sorted(stray)} belongs in gcsFaultToleranceOptions"
        if options is None:
            continue
        annotations = cluster.document["metadata"].get("annotations", {})
        if {"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & set(
            annotations
        ) or "redis-password" in cluster.head.get("rayStartParams", {}):
            yield (
                f"{cluster.where}: old spellings of fault tolerance beside "
                "gcsFaultToleranceOptions are refused"
            )
        if options.get("backend", "redis") == "redis" and "secretKeyRef" not in options.get(
            "redisPassword", {}
        ).get("valueFrom", {}):
            yield f"{cluster.where}: redisPassword does not come from a Secret"


def _environment(documents: list[Document], cluster: Cluster) -> dict[str, str]:
    values: dict[str, str] = {}
    for source in cluster.groups[0]["template"]["spec"]["containers"][0].get("envFrom", []):
        if "configMapRef" in source:
            values |= named(documents, "ConfigMap", source["configMapRef"]["name"])["data"]
    return values


RULES = (
    stable_api, one_ray_version, token_authentication, autoscaler_v2, head_without_work,
    bounded_groups, spot_first,
    start_parameters, whole_node_pods, graceful_drain, announced_groups, finishing_jobs,
    external_state,
)  # fmt: skip
