"""User-defined code by name, `module:function`: how such a name is written and imported.

Importing runs code. A name that a person gave (on a command line, or as an argument in Python) is
imported; one that a stored file gives is imported only if a person gave it too. So whatever is read
from storage is turned into objects within `stored_names`.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sat_ray.utils.names import suggest

TIMM = "timm"
"""`timm:resnet18` names a network of this package, and no function of a module called timm."""
IMPORTED_LATER = ("mlflow", "ray")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


_CONFIRMED: set[str] = set()
_STORED: ContextVar[str] = ContextVar("stored", default="")  # what gives the names


class UnconfirmedCodeError(ValueError):
    """A stored file names code that no person named."""


def confirm(names: Collection[str]) -> None:
    """Remember names that a person gave: from now on stored files may name them too."""
    for name in names:
        if not is_reference(name):
            raise ValueError(f"allow_code must be names written as module:function, got {name!r}")
    _CONFIRMED.update(names)


def confirmed() -> tuple[str, ...]:
    """Return the names that a person gave to this process, for a process that it starts."""
    return tuple(sorted(_CONFIRMED))


@contextmanager
def stored_names(source: str = "a stored file") -> Iterator[None]:
    """Import nothing in this block, in this thread, but names that a person gave.

    source: the file that gives the names, for the message; within such a block the outer one's.
    """
    token = _STORED.set(_STORED.get() or source)
    try:
        yield
    finally:
        _STORED.reset(token)


def check_confirmed(names: Collection[str], *, source: str) -> None:
    """Raise UnconfirmedCodeError where some of these names are code that no person named.

    source: the file that gives them, for the message.
    """
    missing = sorted({name for name in names if is_reference(name)} - _CONFIRMED)
    if missing:
        raise UnconfirmedCodeError(
            f"{source} names code, and importing it runs it: {', '.join(missing)}; if you trust "
            f"it, give --allow-code {' '.join(missing)} (in Python: allow_code={missing})"
        )


def is_reference(text: str) -> bool:
    """Say whether a text is written as `module:function`."""
    return _REFERENCE.fullmatch(text) is not None and not text.startswith(f"{TIMM}:")


def slug(text: str) -> str:
    """Write a name of either kind for a file: `module:function` becomes `module.function`."""
    return text.replace(":", ".")


def import_module(text: str, *, what: str) -> Any:
    """Import the module of `module:function`; ValueError in one line.

    It is looked for in the working directory, then on PYTHONPATH and among installed packages.

    what: the kind of thing it names, for messages.
    """
    name = text.partition(":")[0]
    if source := _STORED.get():
        check_confirmed([text], source=source)
    else:
        _CONFIRMED.add(text)
    if name == "__main__":
        raise ValueError(
            f"{what} {text}: __main__ is another module in every process; use a module that every "
            "process can import"
        )
    _search_here_first()
    here = _file_here(name)
    if here is not None and name.partition(".")[0] in IMPORTED_LATER:
        raise ValueError(
            f"{what} {text}: {here} has the name of a package that sweeps import; rename the file"
        )
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        where = (
            f"; looked for in {os.getcwd()}, PYTHONPATH and what is installed"
            if isinstance(error, ModuleNotFoundError)
            else ""
        )
        raise ValueError(
            f"{what} {text}: module {name} cannot be imported ({type(error).__name__}: "
            f"{first_line(error)}){where}"
        ) from None
    found = getattr(module, "__file__", None)
    if here is not None and not (found and here.samefile(found)):
        raise ValueError(
            f"{what} {text}: {here} has the name of another module, which is loaded already "
            f"({found or 'built into Python'}); rename the file"
        )
    return module


def _file_here(name: str) -> Path | None:
    """Return the file of a module of the working directory; None where it has none."""
    place = Path.cwd().joinpath(*name.split("."))
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if file.is_file():
            return file
    return None


def _search_here_first() -> None:
    """Put the working directory first on sys.path, where Python puts the folder of a script."""
    here = os.getcwd()
    if not sys.path or sys.path[0] != here:
        sys.path[:] = [here, *(entry for entry in sys.path if entry != here)]
        importlib.invalidate_caches()


def resolve(text: str, *, what: str) -> Any:
    """Return what `module:function` names.

    Raises ValueError in one line that suggests the closest public names of the module.
    """
    module = import_module(text, what=what)
    name = text.partition(":")[2]
    if not hasattr(module, name):
        known = [one for one in vars(module) if not one.startswith("_")]
        raise ValueError(
            f"{what} {text}: module {module.__name__} has no {name}; {suggest(name, known)}"
        )
    return getattr(module, name)


def call(function: Callable[..., Any], *arguments: Any, what: str, **named: Any) -> Any:
    """Call the user's code; whatever it raises becomes a ValueError in one line.

    what: the subject of the sentence.
    """
    try:
        return function(*arguments, **named)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {first_line(error)}") from None


def parameters(function: Callable[..., Any], *, what: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function, or of a class's constructor.

    Raises ValueError where Python cannot tell them.
    """
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise ValueError(
            f"{what} must be a Python function, def f(x): ..., or a class, got a "
            f"{type(function).__name__} of unknown parameters"
        ) from None


def required(found: dict[str, inspect.Parameter]) -> list[str]:
    """Name the parameters that must be given."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, one in found.items()
        if one.default is inspect.Parameter.empty and one.kind not in variadic
    ]


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type."""
    return (str(error) or type(error).__name__).splitlines()[0]
