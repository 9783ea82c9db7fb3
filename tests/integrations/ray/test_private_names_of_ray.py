"""Private names of Ray stand in one file, and all of them exist in the Ray that is installed."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from sat_ray.integrations.ray import private
from sat_ray.integrations.ray.session import WORKER_ENVIRONMENT

ROOT = Path(private.__file__).parent.parent
PRIVATE = Path(private.__file__)
UNDOCUMENTED = ("class_cache", "internal_kv")  # modules whose own names have no underscore


def is_private(name: str) -> bool:
    """Say whether a dotted name of Ray is private."""
    parts = name.split(".")
    hidden = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return parts[0] == "ray" and (hidden or not set(parts).isdisjoint(UNDOCUMENTED))


def names_of_ray(path: Path) -> Iterator[str]:
    """Yield the dotted names of Ray that a file imports, or reads from what it imports."""
    tree = ast.parse(path.read_text())
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {alias.asname or "ray": alias.name for alias in node.names if is_ray(alias)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ray":
            known |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    yield from known.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            first, _, rest = dotted.partition(".")
            if first in known and all(part.isidentifier() for part in rest.split(".")):
                yield f"{'ray' if first == 'ray' else known[first]}.{rest}"


def is_ray(alias: ast.alias) -> bool:
    """Say whether an import statement names Ray or one of its modules."""
    return alias.name.partition(".")[0] == "ray"


def found(name: str) -> bool:
    """Say whether a dotted name exists: a module, or an attribute of one."""
    module, _, rest = name.partition(".")
    value = importlib.import_module(module)
    for part in filter(None, rest.split(".")):
        module = f"{module}.{part}"
        if not hasattr(value, part):
            try:
                importlib.import_module(module)
            except ImportError:
                return False
        value = getattr(value, part)
    return True


NAMES = sorted({name for name in names_of_ray(PRIVATE) if is_private(name)})


@pytest.mark.parametrize("name", NAMES)
def test_every_private_name_exists(name: str) -> None:
    assert found(name), f"{name} is gone from this Ray; see its reason in {PRIVATE}"


def test_a_name_that_is_gone_is_seen() -> None:
    assert len(NAMES) >= 10
    assert found("ray._private.state.state") and not found("ray._private.state.no_such_name")
    assert not found("ray._no_such_module.name")


@pytest.mark.parametrize("path", sorted(set(ROOT.rglob("*.py")) - {PRIVATE}), ids=str)
def test_no_other_file_uses_private_names(path: Path) -> None:
    assert not [name for name in names_of_ray(path) if is_private(name)]


def test_ray_train_still_reads_the_variables_that_workers_get() -> None:
    from ray.train.v2._internal import constants

    wanted = {name for name in WORKER_ENVIRONMENT if name.startswith("RAY_TRAIN_")}
    assert private.GROUP_START_SECONDS in wanted
    assert wanted <= constants.ENV_VARS_TO_PROPAGATE


def test_ray_still_reads_how_often_it_is_to_try_to_reach_a_cluster() -> None:
    from ray._private.node import Node

    assert private.CONNECT_TRIES in inspect.getsource(Node._init_gcs_client)


def test_the_parts_of_a_process_group_still_take_what_they_are_given() -> None:
    from ray.train.torch import config

    taken = inspect.signature(config._setup_torch_process_group).parameters
    assert {"backend", "world_rank", "world_size", "init_method", "timeout_s"} <= set(taken)
    made = private.group_through_files("gloo", timeout_s=5, folder="/nowhere")
    assert (made.backend, made.timeout_s) == ("gloo", 5)
    assert issubclass(made.backend_cls, config._TorchBackend)
    assert set(inspect.signature(made.backend_cls.on_start).parameters) == set(
        inspect.signature(config._TorchBackend.on_start).parameters
    )


def test_a_private_ray_resolves_its_address_to_the_loopback_inside_the_block_alone() -> None:
    from ray._private import ray_constants, services

    before = ray_constants.ENABLE_RAY_CLUSTER
    assert before, "Ray has another default here: the patch is not needed"
    with private.on_loopback_alone():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    assert before == ray_constants.ENABLE_RAY_CLUSTER
