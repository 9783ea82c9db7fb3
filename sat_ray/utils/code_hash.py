"""Hashes of source code, module by module, so that results of other code are noticed.

Comments, docstrings and layout do not count.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PACKAGE = "sat_ray"
MISSING = "missing"


@functools.cache
def code_hashes(modules: tuple[str, ...]) -> dict[str, str]:
    """Return what `hash_code` says, read once per process."""
    return hash_code(modules)


def hash_code(modules: Iterable[str]) -> dict[str, str]:
    """Hash modules and what they import.

    That is: of this package, of their own packages, and of the plain files beside them.
    """
    modules = tuple(modules)
    packages = {PACKAGE, *(name.partition(".")[0] for name in modules)}
    folders = {folder for name in packages - {PACKAGE} if (folder := _folder(name)) is not None}
    hashes: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in hashes:
            continue
        hashes[name], imported = _read(name, packages)
        waiting += [
            found for found in imported if _counts(found.partition(".")[0], packages, folders)
        ]
    return dict(sorted(hashes.items()))


def is_installed(module: str) -> bool:
    """Return whether a module is installed, or not there at all: then it is not the user's code."""
    return _folder(module.partition(".")[0]) is None


def _folder(package: str) -> Path | None:
    """Return the folder of a user's package or module; None for an installed one."""
    spec = _spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    folder = path.parent.parent if spec.submodule_search_locations else path.parent
    return None if folder.name in ("site-packages", "dist-packages") else folder


def _counts(top: str, packages: Iterable[str], folders: set[Path]) -> bool:
    return top in packages or _folder(top) in folders


def _spec(module: str) -> ModuleSpec | None:
    """Find a module without importing its packages, as importlib.util.find_spec would.

    The name may come from a stored record, so nothing of it may run.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for depth in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = ".".join([top, *rest[: depth + 1]])
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return None
    return spec


def _read(module: str, packages: Iterable[str]) -> tuple[str, list[str]]:
    """Return the hash of a module and what it imports; of a compiled one, of its bytes."""
    spec = _spec(module)
    assert spec is not None or module.partition(".")[0] != PACKAGE, module
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return MISSING, []
    path = Path(spec.origin)
    if path.suffix != ".py":
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16], []
    tree = ast.parse(path.read_text())
    within = module if spec.submodule_search_locations else module.rpartition(".")[0]
    imported = _imports(tree, packages, within=within)
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()[:16], imported


def _imports(tree: ast.Module, packages: Iterable[str], *, within: str) -> list[str]:
    """Name what a module of the package `within` imports, relative imports included."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = (
                within.split(".")[: len(within.split(".")) + 1 - node.level] if node.level else []
            )
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.append(module)
            if module.partition(".")[0] in packages:
                found += [
                    name
                    for alias in node.names
                    if _spec(name := f"{module}.{alias.name}") is not None
                ]
    return [name for name in found if name]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
