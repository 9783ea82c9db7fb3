"""Whether the nodes of a Ray cluster can ever provide what a stage takes.

Nodes that the autoscaler can buy count too.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sat_ray.sweep.config.resources import Resources

POOL_LABEL = "sat-ray/pool"  # a label of Ray's nodes; cluster/ sets it
CPU_POOL = "cpu"
GROUPS_FORM = (
    '[{"pool": "cpu", "nodes": 8, "CPU": 14}, '
    '{"pool": "gpu-spot", "nodes": 8, "CPU": 44, "GPU": 4}]'
)
# Ray does not report what its autoscaler may buy; this variable of the cluster does.
NODE_GROUPS = "SAT_RAY_NODE_GROUPS"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """`count` times the same resources for one stage; a gang starts whole or not at all.

    field: the setting that decides; at_once: gangs that run at the same time; shared: all but the
    first ask for a share of the GPU, by what the first needed.
    """

    stage: str
    field: str
    resources: Resources
    count: int = 1
    gang: bool = False
    at_once: int = 1
    shared: bool = False

    def __str__(self) -> str:
        bundle = ", ".join(f"{name} {amount:g}" for name, amount in self.resources.items())
        count = f"{self.count} x " if self.gang or self.count > 1 else ""
        if self.gang:
            gangs = f"{self.at_once} gangs" if self.at_once > 1 else "a gang"
            count = f"{gangs} of {count}"
        shared = (
            ": the first has its GPU alone, of the others as many share one as its memory then "
            "shows to fit"
            if self.shared
            else ""
        )
        pool = f" on {POOL_LABEL}={CPU_POOL} where nodes carry that label"
        return f"{count}{{{bundle}}}{shared}{'' if _gpus(self.resources) else pool}"


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one kind that are there or can be bought: `nodes` times `resources`.

    pool: value of the label sat-ray/pool, or "".
    """

    pool: str
    nodes: int
    resources: Resources

    def room(self, resources: Resources) -> int:
        """Return how many such bundles the whole group holds; a bundle lies on one node."""
        wanted = {name: amount for name, amount in resources.items() if amount}
        each = min(
            (
                math.floor(self.resources.get(name, 0) / amount + 1e-9)
                for name, amount in wanted.items()
            ),
            default=1,
        )
        return self.nodes * each


def pool_selector(resources: Resources, nodes: Sequence[NodeGroup]) -> dict[str, str]:
    """Return the label selector that keeps work without GPUs off GPU nodes.

    {} where it has GPUs, or no node would carry the label.
    """
    labelled = any(group.pool == CPU_POOL for group in nodes)
    return {POOL_LABEL: CPU_POOL} if labelled and not _gpus(resources) else {}


def check_room(demands: Sequence[Demand], nodes: Sequence[NodeGroup]) -> None:
    """Raise ValueError where the nodes could never give what is demanded, however long it waits."""
    for demand in demands:
        selector = pool_selector(demand.resources, nodes)
        allowed = [group for group in nodes if not selector or group.pool == CPU_POOL]
        room = sum(group.room(demand.resources) for group in allowed)
        needed = demand.count * demand.at_once if demand.gang else 1
        if room >= needed:
            continue
        at_once = (
            f"{needed} workers of {_words(demand.resources)} at once"
            if demand.gang
            else f"{_words(demand.resources)} on one node"
        )
        most = max(
            (group.resources for group in allowed),
            key=lambda r: (r.get("GPU", 0), r.get("CPU", 0)),
            default={},
        )
        raise ValueError(
            f"{demand.field}: {at_once}, but this cluster can never hold more than {room} such; "
            f"its largest node has {_words(most)}; lower --resources.*, use a larger cluster, or "
            f"name in {NODE_GROUPS} what its autoscaler may buy"
        )


def announced_groups() -> list[NodeGroup]:
    """Read from SAT_RAY_NODE_GROUPS what the autoscaler may buy.

    [] where it is not set. ValueError shows the form.

    JSON, one object per group: [{"pool": "cpu", "nodes": 8, "CPU": 14}, {"pool": "gpu-spot",
    "nodes": 8, "CPU": 44, "GPU": 4}]
    """
    text = os.environ.get(NODE_GROUPS, "")
    if not text:
        return []
    try:
        return [_group(**one) for one in json.loads(text)]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{NODE_GROUPS} must be JSON like {GROUPS_FORM}, got {text!r} ({error})"
        ) from None


def _group(*, pool: str, nodes: int, **resources: Any) -> NodeGroup:
    return NodeGroup(
        pool=str(pool),
        nodes=int(nodes),
        resources={name: float(amount) for name, amount in resources.items()},
    )


def _gpus(resources: Resources) -> bool:
    return resources.get("GPU", 0) > 0


def _words(resources: Resources) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
