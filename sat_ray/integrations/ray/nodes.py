"""The nodes of the cluster and those that its autoscaler may buy; where work without GPUs runs."""

from sat_ray.integrations.ray.private import draining_nodes
from sat_ray.sweep.config.resources import Resources
from sat_ray.sweep.resources.nodes import POOL_LABEL, NodeGroup, announced_groups, pool_selector


def node_groups() -> list[NodeGroup]:
    """Return the node groups that the environment announces, else each living node as a group."""
    import ray  # not at the top: a private Ray's environment is set before the first import

    return announced_groups() or [
        NodeGroup(
            pool=node["Labels"].get(POOL_LABEL, ""),
            nodes=1,
            resources={name: float(node["Resources"].get(name, 0)) for name in ("CPU", "GPU")},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def this_node_leaves() -> bool:
    """Say whether the node of this process drains: it takes no more work and is about to go."""
    import ray

    return ray.get_runtime_context().get_node_id() in draining_nodes()


def selector_for(resources: Resources) -> dict[str, str]:
    """Return this cluster's label selector for work with these resources; {} allows any node."""
    return pool_selector(resources, node_groups())
