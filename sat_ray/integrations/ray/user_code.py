"""Check that every node can import user-defined code, and has the same version of it."""

from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sat_ray.integrations.ray.tasks import result
from sat_ray.utils.code_hash import code_hashes
from sat_ray.utils.import_string import resolve

REMEDY = "install it on every node, or submit it with ray job submit --working-dir"


@ray.remote(num_cpus=0, max_retries=1)
def _hashes(names: Sequence[str]) -> dict[str, str] | str:
    try:
        for name in names:
            resolve(name, what="own code")
    except ValueError as error:
        return str(error)
    return code_hashes(_modules(names))


def _modules(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({name.partition(":")[0] for name in names}))


def check_importable(names: Sequence[str]) -> None:
    """Raise ValueError where a living node cannot import `module:function` or has another version.

    The message names the node.
    """
    if not names:
        return
    ours = code_hashes(_modules(names))
    nodes = [node for node in ray.nodes() if node["Alive"]]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    refs = [_hashes.options(scheduling_strategy=place).remote(list(names)) for place in places]
    for node, ref in zip(nodes, refs, strict=True):
        theirs = result(ref)
        if isinstance(theirs, str):
            raise ValueError(f"node {node['NodeManagerAddress']}: {theirs}; {REMEDY}")
        modules = ours.keys() | theirs.keys()
        other = sorted(name for name in modules if ours.get(name) != theirs.get(name))
        if other:
            raise ValueError(
                f"node {node['NodeManagerAddress']} has another version of {', '.join(other)}; "
                f"{REMEDY}"
            )
