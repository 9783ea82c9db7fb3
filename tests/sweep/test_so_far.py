"""What committed shards show of an unfinished evaluation."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from sat_ray.evaluation.intervals import anytime_interval
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import rows_of, sampled_rows
from sat_ray.sweep.records.so_far import Committed
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import EVALUATE, Dataset, EvaluationTask

DATASET = Dataset(uri="", hash="d", manifest={"splits": {"test": 100}})


def shards(*, shuffled: bool, total: int = 100, size: int = 20) -> list[EvaluationTask]:
    return [
        EvaluationTask(
            checkpoint="c",
            checkpoint_sha256="w",
            name="n",
            attacks=(),
            first=first,
            last=first + size,
            seed=3,
            slots=32,
            dataset=DATASET,
            environment={"device": "cpu"},
            shuffled=shuffled,
        )
        for first in range(0, total, size)
    ]


def commit(task: EvaluationTask, records: Records, *, robust: int) -> None:
    payload = {"name": task.name, "n": task.last - task.first, "robust": robust}
    records.commit(EVALUATE, task.key, inputs=task.inputs, payload=payload, seconds=1.0)


def test_only_shards_without_a_gap_are_a_sample_and_all_lower_the_bound(tmp_path: Path) -> None:
    tasks, records = shards(shuffled=True), Records(Storage.at(tmp_path))
    committed = Committed(tasks, records)
    assert str(committed.look()) == "" and not committed.look().narrow(1.0)
    commit(tasks[3], records, robust=0)
    found = committed.look()
    assert found.at_most == pytest.approx(0.8) and found.interval == (0.0, 1.0)
    assert str(found) == "robust at most 80.0 %" and not found.narrow(1.0)
    commit(tasks[0], records, robust=15)
    found = committed.look()
    assert (found.seen, found.robust, found.broken) == (20, 15, 25)
    assert found.interval == anytime_interval(15, 20, total=100)
    low, high = found.interval
    assert found.narrow(high - low) and not found.narrow(high - low - 0.01)
    assert committed.count == 2 and committed.without_gap() == tasks[:1]


def test_images_in_their_own_order_have_a_bound_and_no_interval(tmp_path: Path) -> None:
    tasks, records = shards(shuffled=False), Records(Storage.at(tmp_path))
    commit(tasks[0], records, robust=5)
    found = Committed(tasks, records).look()
    assert found.interval == (0.0, found.at_most) == (0.0, 0.85)
    assert str(found) == "robust at most 85.0 %"


def test_shuffled_shards_hold_every_row_once_in_an_order_of_the_seed() -> None:
    rows = [rows_of(task).tolist() for task in shards(shuffled=True)]
    assert sorted(chain(*rows)) == list(range(100))
    assert all(part == sorted(part) for part in rows) and rows[0] != list(range(20))
    assert set(chain(*rows[:2])) == set(sampled_rows(100, 40, seed=3).tolist())
    in_order = shards(shuffled=False)
    assert torch.equal(rows_of(in_order[1]), torch.arange(20, 40))
    assert "shuffled" not in in_order[0].inputs
