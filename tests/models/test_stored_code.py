"""Code that a stored file names is imported only if a person named it too."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sat_ray.checkpoint import load_model, save_model
from sat_ray.integrations.command_line import export, status
from sat_ray.models import ModelSpec, model_from_spec
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config.stored import code_named, stored_config
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.utils import import_string as reference
from sat_ray.utils.code_hash import hash_code
from sat_ray.utils.import_string import UnconfirmedCodeError, confirm
from sat_ray.utils.serialization import to_json

EVIL = "from pathlib import Path\nPath(__file__).with_name('was imported').touch()\n"
PLACES: dict[str, Callable[[dict[str, Any]], None]] = {
    "network": lambda config: config["model"].update(name="strangers.net:make"),
    "dataset": lambda config: config["data"].update(dataset="strangers.net:make"),
    "activation": lambda config: config["search"].update(
        activations=["relu", "strangers.net:make"]
    ),
    "activation with alphas": lambda config: config["search"].update(
        activations=["strangers.net:make:1,2"]
    ),
    "pair": lambda config: config["search"].update(pairs=["relu/strangers.net:make"]),
}


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder that holds a package of somebody's, which leaves a mark where it is
    imported."""
    package = tmp_path / "strangers"
    package.mkdir()
    (package / "__init__.py").write_text(EVIL)
    (package / "net.py").write_text("make = None\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "_CONFIRMED", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield package / "was imported"
    for name in [one for one in sys.modules if one.partition(".")[0] == "strangers"]:
        del sys.modules[name]


def _sweep(folder: Path, change: Callable[[dict[str, Any]], None]) -> Storage:
    config = to_json(RECIPES["digits_smoke"]())
    change(config)
    storage = Storage(str(folder / "runs" / "digits_smoke"))
    storage.write_json("config.json", config)
    return storage


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Return a function that runs a command and returns what it prints."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.delenv("SAT_RAY_STORAGE", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # a command may change it

    def answered(command: ModuleType, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [command.__name__, *words])
        command.main(about="")
        said = capsys.readouterr()
        return said.out + said.err

    yield answered
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("place", PLACES)
def test_a_stored_config_names_its_code_and_imports_none(
    place: str, stranger: Path, tmp_path: Path
) -> None:
    storage = _sweep(tmp_path, PLACES[place])
    assert code_named(storage.read_json("config.json")) == ["strangers.net:make"]
    with pytest.raises(
        UnconfirmedCodeError,
        match=r"config\.json names code.*give --allow-code strangers\.net:make",
    ):
        stored_config(storage)
    assert not stranger.exists()
    confirm(["strangers.net:make"])
    with pytest.raises(ValueError, match=r"strangers\.net:make must be .* got a NoneType"):
        stored_config(storage)
    assert stranger.exists(), "the package was importable all the time"


def test_reading_commands_import_nothing_that_storage_names(
    stranger: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    _sweep(tmp_path, PLACES["network"])
    for words in ([], ["digits_smoke"], ["--json"]):
        assert "--allow-code strangers.net:make" in run(status, *words)
        assert not stranger.exists(), words
    assert run(export, "digits_smoke", "--out", "m.pt2").startswith("error: ")
    assert not stranger.exists()
    allowed = run(status, "digits_smoke", "--allow-code", "strangers.net:make")
    assert stranger.exists() and "got a NoneType" in allowed


def test_a_module_with_the_name_of_an_activation_is_code_too(
    stranger: Path, tmp_path: Path
) -> None:
    (tmp_path / "relu.py").write_text("from strangers.net import make\n")
    for place, change in {
        "network": lambda config: config["model"].update(name="relu:make"),
        "dataset": lambda config: config["data"].update(dataset="relu:make"),
        "pair": lambda config: config["search"].update(pairs=["silu/relu:make"]),
    }.items():
        storage = _sweep(tmp_path, change)
        assert code_named(storage.read_json("config.json")) == ["relu:make"], place
        with pytest.raises(UnconfirmedCodeError):
            stored_config(storage)
    mistyped = _sweep(tmp_path, lambda config: config["search"].update(activations=["relu:x"]))
    with pytest.raises(ValueError, match="an alpha must be a number, got 'x'"):
        stored_config(mistyped)
    assert not stranger.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (PLACES["network"], "--allow-code"),
        (lambda config: config.clear(), "cannot be read as a sweep's config"),
    ],
    ids=["code", "damaged"],
)
def test_one_sweep_that_is_not_read_does_not_hide_the_others(
    change: Callable[[dict[str, Any]], None], reason: str, stranger: Path, tmp_path: Path
) -> None:
    _sweep(tmp_path, change)
    plain = Storage(str(tmp_path / "runs" / "plain"))
    plain.write_json("config.json", to_json(RECIPES["digits_smoke"]()))
    root = Storage(str(tmp_path / "runs"))
    Storage(str(tmp_path / "runs" / "cut")).write("config.json", b"{")
    damaged, first, second = status.answer(status.Asked(), root).splitlines()
    assert damaged.startswith(f"cut           not read: {root.uri}/cut/config.json is no JSON")
    assert first.startswith("digits_smoke  not read: ") and "last record" in second
    values = json.loads(status.answer(status.Asked(json=True), root))
    assert "is no JSON" in values[0]["unread"]
    assert reason in values[1]["unread"] and values[2]["name"] == "plain"
    assert not stranger.exists()


@pytest.mark.parametrize("field", ["name", "activation"])
def test_a_checkpoint_imports_only_what_the_caller_allows(
    field: str, stranger: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(name="small_resnet", in_channels=1, mean=(0.5,), std=(0.5,), width=2)
    storage = Storage(str(tmp_path / "checkpoint"))
    save_model(storage, model_from_spec(spec, seed=0).state_dict(), spec=spec, about={})
    value = storage.read_json("model.json")
    value["spec"][field] = "strangers.net:make"
    del value["checksum"]
    storage.write_json("model.json", sealed(value))
    with pytest.raises(
        UnconfirmedCodeError, match=r"model\.json names code.*allow_code=\['strangers\.net:make'\]"
    ):
        load_model(storage.uri)
    assert not stranger.exists()
    with pytest.raises(ValueError, match=r"strangers\.net:make must be .* got a NoneType"):
        load_model(storage.uri, allow_code=["strangers.net:make"])
    assert stranger.exists()


def test_records_and_hashes_of_code_import_nothing(stranger: Path) -> None:
    sys.path.insert(0, str(stranger.parent.parent))
    with pytest.raises(UnconfirmedCodeError):
        SearchPoint.of({"configuration": {"activation": "strangers.net:make"}})
    assert hash_code(["strangers.net"])["strangers.net"] != "missing"
    assert not stranger.exists()


def test_what_a_person_named_may_be_named_by_files_of_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "our_nets.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, activation):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation(), nn.Linear(8, "
        "num_classes))\n"
    )
    monkeypatch.setattr(reference, "_CONFIRMED", set())
    spec = ModelSpec(name="our_nets:net", in_channels=1, mean=(0.5,), std=(0.5,))
    storage = Storage(str(tmp_path / "checkpoint"))
    save_model(storage, model_from_spec(spec, seed=0).state_dict(), spec=spec, about={})
    assert load_model(storage.uri)(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    del sys.modules["our_nets"]


def test_names_to_allow_must_look_like_names() -> None:
    with pytest.raises(
        ValueError, match="allow_code must be names written as module:function, got 'everything'"
    ):
        confirm(["everything"])
    assert export.Asked().allow_code == status.Asked().allow_code == ()
