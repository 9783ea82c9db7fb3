"""The tree is the map: imports point down the list of rooms, no circles,
few floors, few entries in every folder, light commands.
"""

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import TESTS

import sat_ray

ROOT = Path(sat_ray.__file__).parent
ROOMS = (
    *(
        "integrations",
        "report",
        "sweep",
        "training",
        "evaluation",
        "checkpoint",
        "models",
        "attacks",
    ),
    *("data", "activations", "threat", "storage", "utils"),
)
MOST_ENTRIES = 13
MOST_FLOORS = 12
HEAVY = {"ray", "mlflow"}
ALLOWED_AT_THE_TOP = {
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pyarrow",
    "safetensors",
    "tyro",
    "sat_ray",
}
NO_MODULE = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
IN_A_ROOM = [name for name in MODULES if name.count(".") and not name.endswith("__main__")]
BELOW_INTEGRATIONS = [
    name for name in IN_A_ROOM if name.split(".")[1] not in ("integrations", "report")
]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a source file."""
    return ast.parse(path.read_text())


def imports(path: Path, *, at_the_top: bool = False) -> Iterator[str]:
    """Yield the dotted names that a file imports, anywhere or in its module body alone."""
    tree = parsed(path)
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> int:
    """Return the number of a module's room, 0 for the highest."""
    return ROOMS.index(module.split(".")[1])


def test_the_rooms_are_those_of_the_list_and_no_folder_is_crowded() -> None:
    assert {name.split(".")[1] for name in IN_A_ROOM} == set(ROOMS)
    for folder in (ROOT, *(path for path in ROOT.rglob("*") if path.is_dir())):
        found = {
            path.name for path in folder.iterdir() if path.is_file() or any(path.rglob("*.py"))
        }
        entries = sorted(found - NO_MODULE)
        assert len(entries) <= MOST_ENTRIES, f"{folder} has {len(entries)} entries: {entries}"


def test_tests_mirror_the_rooms_and_no_folder_of_theirs_is_crowded() -> None:
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    folders = [path for path in TESTS.rglob("*") if path.is_dir() and any(path.rglob("*.py"))]
    assert rooms <= {path.name for path in folders if path.parent == TESTS}
    for folder in folders:
        found = [path for path in folder.iterdir() if path in folders or path.suffix == ".py"]
        entries = sorted({path.name for path in found} - NO_MODULE)
        assert len(entries) <= MOST_ENTRIES, f"{folder} has {len(entries)} entries: {entries}"


def test_imports_point_down_the_list_of_rooms() -> None:
    for module, name in ((one, name) for one in IN_A_ROOM for name in imports(MODULES[one])):
        assert not name.startswith("pipelines"), f"{module} imports {name}"
        if name.startswith("sat_ray.") and name.split(".")[1] in ROOMS:
            assert room(name) >= room(module), (
                f"{module} imports {name}, which lies in a higher room"
            )


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: set(_modules(path)) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle of imports: {' -> '.join((*path, name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_longest_chain_of_imports_is_short() -> None:
    graph = {name: set(_modules(path)) - {name} for name, path in MODULES.items()}

    @functools.cache
    def chain(name: str) -> tuple[str, ...]:
        """Return the longest chain of imports at the top of modules that begins with this one."""
        return (name, *max((chain(other) for other in graph[name]), key=len, default=()))

    longest = max(map(chain, graph), key=len)
    assert len(longest) <= MOST_FLOORS, " -> ".join(longest)


def _modules(path: Path) -> Iterator[str]:
    """Yield the modules of the project that a file imports in its module body."""
    for name in imports(path, at_the_top=True):
        found = name if name in MODULES else name.rpartition(".")[0]
        if found in MODULES and found != "sat_ray":
            yield found


@pytest.mark.parametrize("package", sorted(HEAVY))
def test_ray_and_mlflow_are_imported_in_their_own_folders_alone(package: str) -> None:
    users = {
        m for m, path in MODULES.items() if package in {i.partition(".")[0] for i in imports(path)}
    }
    assert users
    assert all(name.startswith(f"sat_ray.integrations.{package}") for name in users), users


def test_scripts_import_neither_ray_nor_mlflow_themselves() -> None:
    for path in (ROOT.parent / "pipelines").glob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & HEAVY, path


def test_the_lower_rooms_import_few_packages_at_the_top() -> None:
    for module in BELOW_INTEGRATIONS:
        tops = {name.partition(".")[0] for name in imports(MODULES[module], at_the_top=True)}
        assert tops - set(sys.stdlib_module_names) <= ALLOWED_AT_THE_TOP, module


IN_TURN = """
import importlib, json, sys
for names in json.loads(sys.argv[1]):
    for name in names:
        importlib.import_module(name)
    print(json.dumps(list(sys.modules)))
"""


def test_importing_the_report_and_all_below_it_loads_neither_ray_nor_mlflow() -> None:
    """One process imports the rooms below the report first, then the report and the tracker."""
    above = [name for name in IN_A_ROOM if name.split(".")[1] == "report"]
    above.append("sat_ray.integrations.mlflow")
    command = [sys.executable, "-c", IN_TURN, json.dumps([BELOW_INTEGRATIONS, above])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    below, everything = (set(json.loads(line)) for line in done.stdout.splitlines()[-2:])
    assert set(BELOW_INTEGRATIONS) <= below and set(above) <= everything
    assert not below & {*HEAVY, "matplotlib", "sklearn", "boto3"}
    assert not everything & {*HEAVY, "matplotlib.pyplot"}
