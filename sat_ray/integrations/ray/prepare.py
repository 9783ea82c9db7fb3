"""Preparing a dataset: its shards as Ray tasks, wherever the cluster has CPUs.

Every node must see the source folder under the same path.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from sat_ray.integrations.ray.nodes import selector_for
from sat_ray.integrations.ray.tasks import result
from sat_ray.sweep.resources.bundles import SHARD_RESOURCES

# shards submitted and not yet returned: work for that many CPUs, some MB for the driver
IN_FLIGHT = 256


@ray.remote(num_cpus=SHARD_RESOURCES["CPU"], max_retries=3)
def _apply(function: Callable[[Any], Any], task: Any) -> Any:
    return function(task)


def in_tasks(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
    """Apply a function to every task, one CPU each, and yield the results in order.

    Where no Ray is running it is applied in this process.
    """
    if not ray.is_initialized():
        yield from map(function, tasks)
        return
    remote = ray.put(function)
    running = deque[Any]()
    apply = _apply.options(label_selector=selector_for(SHARD_RESOURCES))
    for task in tasks:
        running.append(apply.remote(remote, task))
        if len(running) >= IN_FLIGHT:
            yield result(running.popleft())
    while running:
        yield result(running.popleft())
