"""What a command loads before it answers: help and mistakes need no torch, ray or mlflow."""

import pytest
from sweeps import Ended, pipelines

from sat_ray.integrations.command_line.main import COMMANDS
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import RECIPES
from sat_ray.utils.serialization import to_json

HEAVY = {"torch", "torchvision", "ray", "mlflow", "sklearn", "matplotlib", "boto3", "optuna"}
LIGHT = [
    *((f"{name} --help", 0) for name in COMMANDS),
    ("evaluate --model m:f --help", 0),
    ("sweep digist", 2),
    ("sweep --training.epoch 3", 2),
    ("sweep --training.epochs many", 2),
    ("sweep --search.activations sillu", 2),
    ("sweep digits_smoke --dry-run", 0),
    ("sweep imagenet_resnet50 --dry-run", 0),
    ("evaluate --model m:f --data d --epsilon 8", 2),
    ("status --storage nothing", 2),
    ("status --storage store", 0),
    ("export digits --out a.pt2 --format tf", 2),
    ("compare one", 2),
]
WITH_TORCH = "sweep digits_smoke --model.width 4 --dry-run"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Run every command in a process that has loaded what all commands share."""
    folder = tmp_path_factory.mktemp("start-up")
    Storage.at(folder / "store" / "digits").write_json("config.json", to_json(RECIPES["digits"]()))
    commands = [*(command for command, _ in LIGHT), WITH_TORCH]
    given = [(name, words) for name, *words in map(str.split, commands)]
    shared = "sat_ray.integrations.command_line.run"
    found = pipelines(given, folder, imported=shared, heavy=HEAVY)
    return dict(zip(commands, found, strict=True))


@pytest.mark.parametrize(("command", "status"), LIGHT)
def test_help_mistakes_and_dry_runs_of_recipes_load_nothing_heavy(
    command: str, status: int, ended: dict[str, Ended]
) -> None:
    found = ended[command]
    assert (found.status, found.loaded) == (status, ""), found.err


def test_a_dry_run_of_another_network_loads_torch_alone(ended: dict[str, Ended]) -> None:
    found = ended[WITH_TORCH]
    assert found.status == 0, found.err
    assert {line.partition(":")[0] for line in found.loaded.splitlines()} <= {
        "torch",
        "torchvision",
    }
