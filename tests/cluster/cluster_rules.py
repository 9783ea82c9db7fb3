"""Helpers of test_cluster_manifests: renderings, schemas, outside programs,
and the broken manifests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster.checks import references, rules, safety
from cluster.checks.documents import CLUSTER, pods, versions
from cluster.checks.render import apply_patch, render
from sat_ray.sweep.config import (
    EvaluationSettings,
    FinalSettings,
    ResourceSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.threat import ThreatModel
from sat_ray.training.settings import TrainingSettings

ROOT = CLUSTER.parent
OVERLAYS = ("autoscaling", "gcs-fault-tolerance", "kueue", "laptop", "rayjob")
ALL_RULES = (*rules.RULES, *safety.RULES, *references.RULES)
RAY_SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS") or ROOT.parent / "shared" / "kuberay")
SCHEMA_FILES = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
CORE_GROUPS = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1")

WORKER = {"GPU": 1, "CPU": 3}

# tasks, gangs -> nodes that Ray buys, requests that stay unplaced
PURCHASES = [
    pytest.param([], [], {}, 0, id="nothing waits, nothing is bought"),
    pytest.param([WORKER], [], {"gpu-spot": 1}, 0, id="one GPU task buys one spot node"),
    pytest.param([{"GPU": 0.25}] * 16, [], {"gpu-spot": 1}, 0, id="sixteen quarters share a node"),
    pytest.param([], [[WORKER] * 8], {"gpu-spot": 2}, 0, id="a gang of eight buys two nodes"),
    pytest.param(
        [WORKER] * 40,
        [],
        {"gpu-spot": 8, "gpu-on-demand": 2},
        0,
        id="on-demand only once spot is full",
    ),
    pytest.param(
        [WORKER] * 64,
        [],
        {"gpu-spot": 8, "gpu-on-demand": 2},
        24,
        id="the maximum caps the purchase",
    ),
    pytest.param(
        [],
        [[WORKER] * 8] * 7,
        {"gpu-spot": 8, "gpu-on-demand": 2},
        2,
        id="gangs above the maximum wait whole",
    ),
    pytest.param([{"GPU": 8}], [], {}, 1, id="a bundle larger than a node is infeasible"),
    pytest.param([], [[WORKER] * 48], {}, 1, id="a gang larger than the cluster is infeasible"),
    pytest.param([{"CPU": 1}] * 100, [], {"cpu": 8}, 0, id="CPU tasks buy CPU nodes only"),
    pytest.param(
        [{"CPU": 1}, WORKER], [], {"gpu-spot": 1}, 0, id="a CPU task fills a GPU node bought anyway"
    ),
]

# resources of small_sweep() -> nodes that its stages buy
SWEEP_PURCHASES = [
    pytest.param(
        {},
        {"prepare": {"cpu": 1}, "search": {"cpu": 1}, "train": {"cpu": 1}, "report": {"cpu": 1}},
        id="CPUs only",
    ),
    pytest.param(
        {"cpus_per_trial": 14, "cpus_per_evaluation": 14},
        {"search": {"cpu": 4}, "evaluate": {"cpu": 8}},
        id="CPU nodes are capped",
    ),
    pytest.param(
        {"train_workers": 8, "gpus_per_worker": 1, "cpus_per_worker": 4},
        {
            "prepare": {"cpu": 1},
            "search": {"cpu": 1},
            "train": {"gpu-spot": 2},
            "report": {"cpu": 1},
        },
        id="a gang on spot nodes, everything else on CPU nodes",
    ),
    pytest.param(
        {"train_workers": 4, "train_groups": 3, "gpus_per_worker": 1, "cpus_per_worker": 4},
        {"train": {"gpu-spot": 3}},
        id="three gangs at once",
    ),
    pytest.param(
        {"gpus_per_trial": 0.25, "gpus_per_evaluation": 1},
        {"search": {"gpu-spot": 1}},
        id="four trials share one GPU",
    ),
    pytest.param(
        {"gpus_per_evaluation": 2},
        {"evaluate": {"gpu-spot": 8, "gpu-on-demand": 2}},
        id="on-demand once spot is full",
    ),
]

INFEASIBLE = [
    pytest.param(
        {"cpus_per_trial": 15},
        r"resources.cpus_per_trial: 15 CPUs and 0 GPUs on one node.*largest node has 14 CPUs",
        id="a CPU bundle",
    ),
    pytest.param(
        {"gpus_per_evaluation": 5},
        r"resources.cpus_per_evaluation: 1 CPUs and 5 GPUs on one node",
        id="a GPU bundle",
    ),
    pytest.param(
        {"train_workers": 64, "gpus_per_worker": 1},
        r"resources.train_workers: 64 workers.*more than 40 such",
        id="a gang",
    ),
    pytest.param(
        {"train_workers": 8, "train_groups": 6, "gpus_per_worker": 1},
        r"resources.train_groups: 48 workers.*more than 40 such",
        id="too many gangs at once",
    ),
]

# A JSON pointer into ray-up.yaml and what stands there instead; None drops it.
BROKEN_LAUNCHERS = [
    pytest.param(
        "/provider", {"type": "aws", "regoin": "eu-central-1"}, id="a misspelt provider key"
    ),
    pytest.param(
        "/head_start_ray_commands/1",
        "RAY_AUTH_MODE=token ray start --head",
        id="a head that never scales",
    ),
    pytest.param(
        "/worker_start_ray_commands/1",
        "ray start --address=$RAY_HEAD_IP:6379",
        id="a worker without token",
    ),
    pytest.param("/file_mounts", {}, id="a token that stays at home"),
    pytest.param(
        "/available_node_types/gpu-spot/min_workers", 1, id="a machine that is never given back"
    ),
    pytest.param(
        "/available_node_types/cpu/node_config/IamInstanceProfile",
        None,
        id="keys instead of a role",
    ),
    pytest.param("/max_workers", 3, id="a cap below the groups"),
    pytest.param("/provider/use_internal_ips", False, id="nodes with public addresses"),
    pytest.param(
        "/available_node_types/head/node_config/SecurityGroupIds",
        None,
        id="Ray's own security group",
    ),
    pytest.param(
        "/setup_commands", ["~/venv/bin/pip install --requirement x"], id="packages without hashes"
    ),
    pytest.param(
        "/available_node_types/gpu-spot/max_workers",
        3,
        id="another group than the sweeps are told of",
    ),
]


DASHBOARD = CLUSTER / "monitoring" / "dashboards" / "sat_ray-sweeps.json"
# of Prometheus and of kube-state-metrics
OTHER_METRICS = {"up", "kube_deployment_status_replicas_available"}
PROMQL = {
    *("sum", "avg", "max", "min", "by", "without", "unless", "and", "or", "absent", "changes"),
    *("rate", "increase", "label_values"),
}


def small_sweep(**resources: Any) -> SweepConfig:
    """Return a config of four activations and eight
    models whose evaluation is cut into forty tasks.
    """
    return SweepConfig(
        recipe="small",
        threat_model=ThreatModel("linf", 40 / 255),
        training=TrainingSettings(global_batch_size=256, batchnorm_group_size=4),
        search=SearchSettings(activations=("relu", "silu:1", "gelu:1", "mish:1"), pairs=()),
        final=FinalSettings(seeds=(0, 1)),
        evaluation=EvaluationSettings(shard_size=180, steps=50),
        resources=ResourceSettings(**resources),
    )


def own_metrics() -> set[str]:
    """Return the names of the pipeline's metrics as Prometheus has them, without Ray's prefix."""
    from sat_ray.integrations.ray import prometheus as metrics

    named = {
        value[0]
        for value in vars(metrics).values()
        if isinstance(value, tuple) and str(value[0]).startswith("sat_ray_")
    }
    return {f"{name}_total" if name == metrics.ACCELERATOR_SECONDS[0] else name for name in named}


@cache
def ray_dashboards() -> str:
    """Return Ray's own dashboards as the README's command prints them."""
    return run(sys.executable, CLUSTER / "monitoring" / "ray_dashboards.py")


@cache
def ray_metrics() -> frozenset[str]:
    """Return the names that this Ray's own dashboards
    query and that its agent on each node writes.
    """
    from ray.dashboard.modules.reporter import reporter_agent

    shown = yaml.safe_load_all(ray_dashboards())
    text = " ".join(content for document in shown for content in document["data"].values())
    return frozenset(re.findall(r"\b(?:ray|autoscaler)_\w+", text)) | {
        f"ray_{name}" for name in reporter_agent.METRICS_GAUGES
    }


def dashboard_queries() -> list[str]:
    """Return every query of the dashboard of sweeps, those of its variables included."""
    board = json.loads(DASHBOARD.read_text())
    variables = [
        variable["query"] for variable in board["templating"]["list"] if variable["type"] == "query"
    ]
    return variables + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def alert_queries() -> list[str]:
    """Return the expression of every alert."""
    (document,) = yaml.safe_load_all((CLUSTER / "monitoring" / "alerts.yaml").read_text())
    return [rule["expr"] for group in document["spec"]["groups"] for rule in group["rules"]]


def queried(query: str) -> set[str]:
    """Return the names of the metrics in a PromQL query or a label_values()."""
    text = re.sub(r",\s*\w+\)$", ")", query) if query.startswith("label_values") else query
    text = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without) \([^)]*\)", " ", text)
    return set(re.findall(r"\b[a-zA-Z_]\w*", text)) - PROMQL


class Broken(NamedTuple):
    """One change that a rule must refuse; without `to` the value is dropped."""

    name: str
    rule: str
    overlay: str
    kind: str
    target: str
    change: dict[str, Any]


def broken_manifests() -> list[Broken]:
    """Return the entries of broken.yaml."""
    table = yaml.safe_load((CLUSTER / "checks" / "broken.yaml").read_text())
    found = []
    for rule, entries in table.items():
        for entry in entries:
            overlay, place = entry.pop("in", "autoscaling RayCluster/sat-ray").split()
            found.append(Broken(entry.pop("name"), rule, overlay, *place.split("/"), entry))
    return found


def change(document: dict[str, Any], *, at: str, **to: Any) -> None:
    """Set or drop the value at a JSON pointer."""
    operation = "remove"
    if to:
        operation = "replace" if at.rpartition("/")[2].isdigit() else "add"
    apply_patch(document, [{"op": operation, "path": at, "value": to.get("to")}])


@cache
def _rendered(overlay: str) -> str:
    return json.dumps(render(CLUSTER / "overlays" / overlay))


def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return an own copy of an overlay's documents."""
    return json.loads(_rendered(overlay))


def ray_schema(kind: str) -> dict[str, Any]:
    """Return the strict schema of a ray.io kind; skip with a notice where the folder is absent."""
    path = RAY_SCHEMAS / f"{SCHEMA_FILES[kind]}.v{versions()['KUBERAY']}.strict.schema.json"
    if not path.is_file():
        pytest.skip(
            f"no {path.name} in {RAY_SCHEMAS}; KUBERAY_SCHEMAS names the folder of KubeRay's "
            "strict schemas"
        )
    return json.loads(path.read_text())


def core_documents() -> list[dict[str, Any]]:
    """Return every document of Kubernetes' own kinds, and each Ray pod template as a Pod."""
    folders = [CLUSTER / "overlays" / overlay for overlay in OVERLAYS] + [CLUSTER / "monitoring"]
    documents = [d for folder in folders for d in render(folder) if d["apiVersion"] in CORE_GROUPS]
    for overlay in OVERLAYS:
        for pod in pods(rendered(overlay)):
            metadata = {"name": re.sub("[^a-z]+", "-", pod.where.lower()), **pod.metadata}
            documents.append(
                {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}
            )
    return list({json.dumps(d, sort_keys=True): d for d in documents}.values())


def tool(*names: str, beside: Path = Path(sys.executable).parent) -> str:
    """Return the first of these programs, those in one more folder before the PATH's;
    skip where there is none.
    """
    path = os.pathsep.join((str(beside), os.environ.get("PATH", "")))
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    pytest.skip(f"none of {names} is installed here")


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Return what a program prints; fail with its words where it does. env: more variables."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
