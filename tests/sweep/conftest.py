"""Fixtures of the tests of sweeps."""

from pathlib import Path

import pytest

from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources.registry import DATASETS
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import Dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the digits as shards; tests must not change them."""
    uri = str(tmp_path_factory.mktemp("digits"))
    write_dataset(DATASETS["digits"], Storage.at(uri), rows_per_shard=512)
    found = Dataset.open(uri)
    assert found is not None
    return found


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the records of an empty sweep."""
    return Records(Storage.at(tmp_path / "sweep"))
