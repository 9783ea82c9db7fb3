"""The user's own code by name, `module:function`: what such a name looks like, how it is imported, and errors that teach."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from sat_ray.names import suggest

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
    """Say whether a text is written as `module:function`."""
    return _REFERENCE.fullmatch(text) is not None


def slug(text: str) -> str:
    """Write a name of either kind for a file: `module:function` becomes `module.function`."""
    return text.replace(":", ".")


def import_module(text: str, *, what: str) -> Any:
    """Import the module of `module:function`; ValueError in one line.

    It is looked for in the working directory, then on PYTHONPATH and among installed packages.

    what: the kind of thing it names, for messages.
    """
    name = text.partition(":")[0]
    if name == "__main__":
        raise ValueError(f"{what} {text}: __main__ is another module in every process; allowed: a module that every process can import")
    _search_here_first()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        where = f"; looked for in {os.getcwd()}, PYTHONPATH and what is installed" if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"{what} {text}: module {name} cannot be imported ({type(error).__name__}: {first_line(error)}){where}") from None


def _search_here_first() -> None:
    """Put the working directory first on sys.path, where Python puts the folder of a script."""
    here = os.getcwd()
    if not sys.path or sys.path[0] != here:
        sys.path[:] = [here, *(entry for entry in sys.path if entry != here)]
        importlib.invalidate_caches()


def resolve(text: str, *, what: str) -> Any:
    """Return what `module:function` names; ValueError in one line suggests the closest public names of the module."""
    module, name = import_module(text, what=what), text.partition(":")[2]
    if not hasattr(module, name):
        known = [one for one in vars(module) if not one.startswith("_")]
        raise ValueError(f"{what} {text}: module {module.__name__} has no {name}; {suggest(name, known)}")
    return getattr(module, name)


def call(function: Callable[..., Any], *arguments: Any, what: str, **named: Any) -> Any:
    """Call the user's code; whatever it raises becomes a ValueError in one line. what: the subject of the sentence."""
    try:
        return function(*arguments, **named)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {first_line(error)}") from None


def parameters(function: Callable[..., Any], *, what: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function, or of what makes a class's instances; ValueError where Python does not know them."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} is a {type(function).__name__} of unknown parameters; allowed: a Python function, def f(x): ..., or a class"
        ) from None


def required(found: dict[str, inspect.Parameter]) -> list[str]:
    """Name the parameters that must be given."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, one in found.items() if one.default is inspect.Parameter.empty and one.kind not in variadic]


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type."""
    return (str(error) or type(error).__name__).splitlines()[0]
