"""Who may import whom: the science needs neither ray nor mlflow, and imports point down only."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import sat_ray

ROOT = Path(sat_ray.__file__).parent
LAYERS: dict[int, str] = {
    0: "names reference source_code own_activation randomness threat activation_functions activations losses metrics selection storage"
    " s3_preflight sealed bounds world compilation kernel_choice pooling probabilities",
    1: "attacks augmentation models data cycles outcome_files class_names",
    2: "agreement narrowing run_queue seats flight lanes"
    " fast_copy rescoring calibration evaluation card training_settings schedules resizing precision objectives crafting"
    " optimizers averaging running_statistics learner totals sentinel preemption gpu_memory training_state training checkpoint state_files"
    " model_source model_contents model_trial kernel_reach",
    3: "configuration config stages spending budget halving units plan bundles jobs outcomes cli option_values"
    " activation_table cluster_address"
    " lease renewed_lease leftovers standing tracking tracking_uri",
    4: "mlflow_tracker distributed report",
}
LAYER_OF = {part: layer for layer, parts in LAYERS.items() for part in parts.split()}
ALLOWED_AT_THE_TOP = {"torch", "torchvision", "numpy", "pyarrow", "safetensors", "tyro", "sat_ray"}
ALSO_ALLOWED = {"sat_ray.pooling": {"triton"}}  # imported where there is a GPU


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def part_of(module: str) -> str:
    """Return the name directly below sat_ray: its module or its folder."""
    return module.split(".")[1]


def imports(path: Path, *, at_the_top: bool = False) -> list[str]:
    """Return the dotted names that a file imports, anywhere or in its module body alone."""
    tree = ast.parse(path.read_text())
    found = []
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def below(layer: int) -> list[str]:
    """Return the modules of the layers up to this one."""
    return [name for name in MODULES if name != "sat_ray" and LAYER_OF[part_of(name)] <= layer]


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    assert {part_of(name) for name in MODULES if name != "sat_ray"} == set(LAYER_OF)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "sat_ray"])
def test_imports_point_down_only(module: str) -> None:
    for name in imports(MODULES[module]):
        if name.startswith("pipelines"):
            pytest.fail(f"{module} imports {name}")
        if name.startswith("sat_ray.") and name.split(".")[1] in LAYER_OF:
            assert LAYER_OF[part_of(name)] <= LAYER_OF[part_of(module)], f"{module} imports {name}"


def test_ray_is_imported_under_distributed_alone_and_mlflow_under_its_tracker_alone() -> None:
    users: dict[str, set[str]] = {"ray": set(), "mlflow": set()}
    for module, path in MODULES.items():
        for name in imports(path):
            if (top := name.partition(".")[0]) in users:
                users[top].add(module)
    for package, home in (("mlflow", "sat_ray.mlflow_tracker"), ("ray", "sat_ray.distributed")):
        assert users[package] and all(name.startswith(home) for name in users[package])


def test_pipelines_import_neither_ray_nor_mlflow_themselves() -> None:
    for path in (ROOT.parent / "pipelines").glob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & {"ray", "mlflow"}, path


@pytest.mark.parametrize("module", below(3))
def test_the_lower_layers_import_few_packages_at_the_top(module: str) -> None:
    tops = {name.partition(".")[0] for name in imports(MODULES[module], at_the_top=True)}
    assert tops - set(sys.stdlib_module_names) <= ALLOWED_AT_THE_TOP | ALSO_ALLOWED.get(module, set())


def test_importing_all_of_layers_0_to_3_loads_neither_ray_nor_mlflow() -> None:
    code = (
        "import importlib, json, sys; [importlib.import_module(m) for m in json.loads(sys.argv[1])]; print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(below(3))], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert set(below(3)) <= loaded
    assert not loaded & {"ray", "mlflow", "matplotlib", "sklearn", "boto3"}
