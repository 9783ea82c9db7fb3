"""The nodes of the cluster, those included that its autoscaler may buy, and where work without GPUs belongs among them."""

from sat_ray.sweep.resources import (
    POOL_LABEL,
    NodeGroup,
    Resources,
    announced_groups,
    pool_selector,
)


def node_groups() -> list[NodeGroup]:
    """Return what the autoscaler may buy where the environment says so, else every living node as a group of one."""
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

    # what Ray Train asks too; there is no public way outside a training of its own
    return ray.get_runtime_context().get_node_id() in ray._private.state.state.get_draining_nodes()


def selector_for(resources: Resources) -> dict[str, str]:
    """Return the label selector of this cluster for a task, actor or bundle with these resources; {} asks for nothing."""
    return pool_selector(resources, node_groups())
