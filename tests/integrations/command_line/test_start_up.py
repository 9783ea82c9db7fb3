"""What a command loads before it answers: help and mistakes need no torch, ray or mlflow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT
from sweeps import environment

from sat_ray.integrations.command_line.main import COMMANDS
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import RECIPES
from sat_ray.utils.serialization import to_json

PIPELINES = ROOT / "pipelines"
HEAVY = {"torch", "torchvision", "ray", "mlflow", "sklearn", "matplotlib", "boto3", "optuna"}
WITH_TORCH = {"torch", "torchvision"}
# Runs a script and prints the exit status, then each heavy package that was loaded with the chain
# of imports that pulled it in.
CODE = """
import builtins, json, runpy, sys
heavy, found, plain, stack = set(json.loads(sys.argv[1])), {}, builtins.__import__, []
def watched(name, names=None, *rest):
    top = name.partition(".")[0]
    if top in heavy and top not in sys.modules and top not in found:
        found[top] = " > ".join([*stack, (names or {}).get("__name__", "?"), top])
    stack.append((names or {}).get("__name__", "?"))
    try:
        return plain(name, names, *rest)
    finally:
        stack.pop()
builtins.__import__ = watched
sys.argv = sys.argv[2:]
status = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code or 0
print("\\n" + json.dumps([status, found]))
"""


def loaded(script: str, words: list[str], folder: Path, *, heavy: set[str]) -> tuple[int, str]:
    """Run a script in `folder`; return its exit status and how each heavy package was pulled in."""
    command = [sys.executable, "-c", CODE, json.dumps(sorted(heavy)), str(PIPELINES / script)]
    variables = environment(PYTHONPATH=str(PIPELINES.parent))
    done = subprocess.run(
        [*command, *words], cwd=folder, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    status, found = json.loads(done.stdout.splitlines()[-1])
    return status, "\n".join(f"{name}: {chain}" for name, chain in sorted(found.items()))


@pytest.mark.parametrize(
    ("script", "words", "status"),
    [
        *((f"{name}.py", ["--help"], 0) for name in COMMANDS),
        ("evaluate.py", ["--model", "m:f", "--help"], 0),
        ("sweep.py", ["digist"], 2),
        ("sweep.py", ["--training.epoch", "3"], 2),
        ("sweep.py", ["--training.epochs", "many"], 2),
        ("sweep.py", ["--search.activations", "sillu"], 2),
        ("evaluate.py", ["--model", "m:f", "--data", "d", "--epsilon", "8"], 2),
        ("status.py", ["--storage", "nothing"], 2),
        ("status.py", ["--storage", "store"], 0),
        ("export.py", ["digits", "--out", "a.pt2", "--format", "tf"], 2),
        ("compare.py", ["one"], 2),
    ],
)
def test_help_and_mistakes_load_nothing_heavy(
    script: str, words: list[str], status: int, tmp_path: Path
) -> None:
    Storage.at(tmp_path / "store" / "digits").write_json(
        "config.json", to_json(RECIPES["digits"]())
    )
    assert loaded(script, words, tmp_path, heavy=HEAVY) == (status, "")


@pytest.mark.parametrize("recipe", ["digits_smoke", "imagenet_resnet50"])
def test_a_dry_run_of_a_recipe_loads_nothing_heavy(recipe: str, tmp_path: Path) -> None:
    assert loaded("sweep.py", [recipe, "--dry-run"], tmp_path, heavy=HEAVY) == (0, "")


def test_a_dry_run_of_another_network_loads_torch_alone(tmp_path: Path) -> None:
    words = ["digits_smoke", "--model.width", "4", "--dry-run"]
    found = loaded("sweep.py", words, tmp_path, heavy=HEAVY - WITH_TORCH)
    assert found == (0, "")
