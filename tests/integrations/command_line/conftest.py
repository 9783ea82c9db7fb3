"""Fixtures of the tests of the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import parsed

from sat_ray.integrations.command_line.parsing import Command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Command]:
    """Return a parser of command lines that run in an empty folder,
    with no place chosen by the environment.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return parsed
