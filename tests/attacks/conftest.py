"""An independent library of attacks, as an oracle."""

import sys
import types
import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def adv_lib() -> Any:
    """Import adv_lib's attacks. The package imports visdom, a plot server that cannot be built."""
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patched.setitem(sys.modules, "visdom", types.ModuleType("visdom"))
        return pytest.importorskip("adv_lib.attacks")
