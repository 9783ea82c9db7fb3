"""Load the public names of a package when they are first used.

So its light modules, such as settings, can be imported without the heavy ones.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package some of whose modules have the name of a function in them, as `attacks.pgd` has.

    Python sets a module as an attribute of its package when it is imported. Here the public name
    stays the function's; `_homes` holds the public names.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__["_homes"]):
            super().__setattr__(name, value)


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package. homes: the module in it of each public name."""

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        module.__dict__[name] = value
        return value

    module = sys.modules[package]
    module.__dict__["_homes"] = homes
    module.__class__ = _Package
    return load
