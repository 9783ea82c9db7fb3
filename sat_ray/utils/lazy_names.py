"""Public names of a package that are loaded when they are first used.

So its light modules can be imported alone.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package with a module that has the name of a function in it, as `attacks.pgd` has.

    Python sets a module as an attribute of its package when it is imported. Here the public name
    stays the function's; `_homes` holds the public names.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in self.__dict__["_homes"]):
            super().__setattr__(name, value)


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    homes: the module, within the package, of each public name.
    """

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
