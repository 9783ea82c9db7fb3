"""Public names that are loaded at their first use: all are there, and no module replaces one."""

import importlib
import pkgutil
from types import ModuleType

import pytest

PACKAGES = ("activations", "attacks", "data", "evaluation", "models", "training")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_found_whichever_modules_were_imported_before(name: str) -> None:
    package = importlib.import_module(f"sat_ray.{name}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for public in package.__all__:
        assert not isinstance(getattr(package, public), ModuleType), public


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    package = importlib.import_module("sat_ray.attacks")
    with pytest.raises(AttributeError, match=r"module 'sat_ray\.attacks' has no attribute 'pdg'"):
        package.pdg  # noqa: B018
