"""A training that loses a node for good goes on with the workers that are left and ends with the
weights of an undisturbed one.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_rays import ONE_CPU, ray_of_one_node, task_in

from sat_ray.checkpoint import load_model
from sat_ray.integrations.ray.train import train_all, workers_wanted
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import TRAIN

pytestmark = pytest.mark.fault  # minutes: a Ray of two nodes, one of which dies
EPOCHS = 12
SOON_MISSED = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Start a Ray of two nodes with one CPU each."""
    with ray_of_one_node(_system_config=SOON_MISSED) as cluster:
        cluster.add_node(**ONE_CPU)
        yield cluster


def test_a_lost_node_costs_a_worker_and_changes_nothing(cluster: Any, tmp_path: Path) -> None:
    task, records = (
        task_in(tmp_path / "data", epochs=EPOCHS, validate_every=1),
        Records(Storage(str(tmp_path / "sweep"))),
    )
    lost = []

    def lose_the_second_node() -> None:
        while (
            not list((tmp_path / "sweep" / "state" / "progress").glob("*.safetensors"))
            and len(lost) == 0
        ):
            time.sleep(0.05)
        time.sleep(1.0)
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        lost.append(len(records.keys(TRAIN)))

    killer = threading.Thread(target=lose_the_second_node)
    killer.start()
    train_all([task], records, ResourceSettings(train_workers=2, fewest_train_workers=1))
    killer.join()
    assert lost == [0], "the node was lost when the training had already ended"
    record = records.find(TRAIN, task.key)
    assert record is not None
    alone = train_and_commit(task, Records(Storage(str(tmp_path / "alone"))))
    assert (
        [row["epoch"] for row in record.payload["history"]]
        == [row["epoch"] for row in alone.payload["history"]]
        == list(range(EPOCHS))
    )
    places = ((records.storage, record), (Storage(str(tmp_path / "alone")), alone))
    ours, theirs = (
        load_model(storage.located(one.payload["path"])).state_dict() for storage, one in places
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_workers_asked_of_ray_train() -> None:
    assert workers_wanted(ResourceSettings(train_workers=4)) == 4
    assert workers_wanted(ResourceSettings(train_workers=4, fewest_train_workers=4)) == 4
    assert workers_wanted(ResourceSettings(train_workers=4, fewest_train_workers=2)) == (2, 4)
