"""Show which nodes Ray's own autoscaler would buy for given bundles; no cluster is needed.

`python -m cluster.checks.plan '{"GPU": 1, "CPU": 4}' '{"CPU": 2}'` plans single tasks; with
`--gang` the bundles are one placement group. The modules behind it are private to Ray: a new Ray
may move them.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cluster.checks.documents import CLUSTER, named
from cluster.checks.render import render

Bundle = Mapping[str, float]


class Plan(NamedTuple):
    """Nodes to buy per worker group, and how many requests no purchase could satisfy now."""

    nodes: dict[str, int]
    unplaced: int


def plan(
    ray_cluster: dict[str, Any],
    tasks: Iterable[Bundle] = (),
    *,
    gangs: Iterable[list[Bundle]] = (),
    selector: Mapping[str, str] | None = None,
) -> Plan:
    """Return what an otherwise empty cluster would buy.

    tasks: bundles that may run anywhere, one by one; gangs: placement groups, all bundles of one
    start together or not at all. selector: labels of the nodes that are allowed.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config
    from ray.autoscaler.v2 import scheduler, utils
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.core.generated.autoscaler_pb2 import GangResourceRequest

    settings = AutoscalingConfig(
        autoscaling_config._derive_autoscaling_config_from_ray_cr(ray_cluster),
        skip_content_hash=True,
    )
    make = utils.ResourceRequestUtil.make
    labels = [[(key, 1, [value]) for key, value in selector.items()]] if selector else None
    demands = [make(dict(task), label_selectors=labels) for task in tasks]
    groups = []
    for bundles in gangs:
        requests = [make(dict(bundle), label_selectors=labels) for bundle in bundles]
        group = GangResourceRequest(requests=requests)
        group.bundle_selectors.add().resource_requests.extend(requests)
        groups.append(group)
    reply = scheduler.ResourceDemandScheduler().schedule(
        scheduler.SchedulingRequest(
            node_type_configs=settings.get_node_type_configs(),
            max_num_nodes=settings.get_max_num_nodes(),
            idle_timeout_s=settings.get_idle_timeout_s(),
            resource_requests=utils.ResourceRequestUtil.group_by_count(demands),
            gang_resource_requests=groups,
            cluster_resource_constraints=[],
            current_instances=[_head(settings.get_node_type_configs()["headgroup"].resources)],
            disable_launch_config_check=True,
        )
    )
    nodes: Counter[str] = Counter()
    for launch in reply.to_launch:
        nodes[launch.instance_type] += launch.count
    return Plan(
        dict(nodes),
        len(reply.infeasible_resource_requests) + len(reply.infeasible_gang_resource_requests),
    )


def _head(resources: Mapping[str, float]) -> Any:
    """Return the head as a node that already runs; without it the scheduler would buy one."""
    from ray.autoscaler.v2.instance_manager.common import InstanceUtil
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
    from ray.core.generated.instance_manager_pb2 import Instance

    amounts = {name: float(amount) for name, amount in resources.items()}
    node = NodeState(
        node_id=b"head",
        instance_id="head",
        ray_node_type_name="headgroup",
        status=NodeStatus.RUNNING,
        total_resources=amounts,
        available_resources=amounts,
    )
    instance = InstanceUtil.new_instance("head", "headgroup", Instance.RAY_RUNNING)
    return AutoscalerInstance(ray_node=node, im_instance=instance, cloud_instance_id="head")


def main() -> None:
    """Print the plan for bundles from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "bundles", nargs="+", type=json.loads, help='for instance \'{"GPU": 1, "CPU": 4}\''
    )
    parser.add_argument("--gang", action="store_true", help="the bundles are one placement group")
    arguments = parser.parse_args()
    ray_cluster = named(render(CLUSTER / "overlays" / "autoscaling"), "RayCluster", "sat-ray")
    wanted = {"gangs": [arguments.bundles]} if arguments.gang else {"tasks": arguments.bundles}
    result = plan(ray_cluster, **wanted)
    print(json.dumps({"nodes": result.nodes, "unplaced": result.unplaced}))


if __name__ == "__main__":
    main()
