"""Fixtures of the tests of MLflow."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_mlflow_database import make


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete database without runs; tests must not change it."""
    return make(tmp_path_factory.mktemp("complete"))


@pytest.fixture(scope="session")
def fresh(complete: Path) -> Callable[[Path], str]:
    """Return a function that puts a copy of that database into a folder and returns its URI:
    MLflow takes seconds to make one.
    """

    def put(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{shutil.copy(complete, folder / 'mlflow.db')}"

    return put
