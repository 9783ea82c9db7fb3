"""What the tests of lost nodes share: a Ray of one small node to which others are added,
and a short training on digits.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from repository import paths_of_tests
from sweeps import digits_shards

from sat_ray.integrations.ray.local.session_folders import RAY, session_folder
from sat_ray.sweep.plan.trainings import training_task
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN, TrainingTask

OBJECT_STORE = 100 * 1024**2
ONE_CPU: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}


@contextmanager
def cluster_of_one_node(**head: Any) -> Iterator[Any]:
    """Start a Ray node, to which others may be added, and yield its cluster. head:
    what the node is told.
    """
    with pytest.MonkeyPatch.context() as environment, session_folder() as private:
        folder = f"{private}/{RAY}"
        environment.setenv("RAY_AUTH_MODE", "disabled")
        # the default of 30 is short on a busy machine
        environment.setenv("RAY_raylet_start_wait_time_s", "120")
        # its address is written below, and not where others look for a Ray of this machine
        environment.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        # the nodes' workers import the tests
        environment.setenv("PYTHONPATH", paths_of_tests(), prepend=os.pathsep)
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args={"temp_dir": folder, "include_dashboard": False} | head,
        )
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def ray_of_one_node(**head: Any) -> Iterator[Any]:
    """Start a Ray node with one CPU, connect to it, and yield its cluster. head:
    more of what its node is told.
    """
    with cluster_of_one_node(**ONE_CPU | head) as cluster:
        import ray

        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster


def task_in(folder: Path, *, epochs: int, validate_every: int) -> TrainingTask:
    """Describe a training on digits, which are written into a folder.

    It is saved when it is validated.
    """
    dataset = digits_shards(folder)
    config = RECIPES["digits_smoke"]()
    training = replace(config.training, epochs=epochs, validate_every=validate_every)
    return training_task(
        config, dataset, SearchPoint(activation="silu"), stage=TRAIN, seed=0, training=training
    )
