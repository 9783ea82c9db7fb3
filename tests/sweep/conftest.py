"""Fixtures of the tests of sweeps."""

from pathlib import Path

import pytest
from sweeps import digits_shards

from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import Dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the digits as shards; tests must not change them."""
    return digits_shards(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the records of an empty sweep."""
    return Records(Storage.at(tmp_path / "sweep"))
