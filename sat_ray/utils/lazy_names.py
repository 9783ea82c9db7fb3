"""Public names of a package that are loaded when they are first used.

So its light modules can be imported alone.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
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


def lazy_names(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    names: the public names of each module, within the package.
    """
    homes = {name: home for home, public in names.items() for name in public}

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
