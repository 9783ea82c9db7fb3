"""Exported models: files that need none of this code compute what the checkpoint computes, and
their card says what is known.
"""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import filled, trained

from sat_ray.checkpoint import load_model, save_model
from sat_ray.integrations.command_line.export import Asked, export, locate, recorded_card
from sat_ray.models import Normalized, build_model
from sat_ray.models.export import ONNX_PACKAGES, export_model
from sat_ray.report.sweep_report import CONFIG_HASH, config_hash
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import CARD
from sat_ray.utils.serialization import to_json

SHAPE = (1, 8, 8)
DAMAGED = {
    "rows": [{"checkpoint": "checkpoints/train/c", "outcomes": "outcomes/c.parquet"}],
    "sweep": "s",
    "dataset": "digits",
    "threat_model": {"norm": "l2", "epsilon": "x"},
}


def small(activation: str, alpha: float | None = None) -> Normalized:
    shape = {"num_classes": 10, "in_channels": 1, "width": 4}
    return build_model("small_resnet", activation=activation, alpha=alpha, seed=0, **shape).eval()


@pytest.fixture
def checkpoint(digits_model: Normalized, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    assert digits_model.spec is not None
    save_model(
        Storage.at(str(folder)),
        digits_model.state_dict(),
        spec=digits_model.spec,
        about={"seed": 0, "epoch": 5},
    )
    return folder


@pytest.mark.parametrize(
    ("activation", "alpha"),
    [("smoothrelu_learned", None), ("gelu_learned", None), ("smoothrelu", 2.0), ("softplus", None),
     ("elu", 2.0), ("celu", 2.0), ("silu", 8.0), ("gelu", 4.0), ("mish", 16.0)],
)  # fmt: skip
def test_a_pt2_file_computes_logits_and_gradients_of_the_model_at_any_batch_size(
    activation: str, alpha: float | None
) -> None:
    _, parity = export_model(small(activation, alpha), shape=SHAPE, kind="pt2")
    assert parity.logits <= parity.bound and parity.gradient is not None and parity.gradient < 1e-5


def test_an_export_that_computes_something_else_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sat_ray.models import export

    monkeypatch.setattr(export, "exportable", lambda model: small("silu"))
    with pytest.raises(ArithmeticError, match="computes something else"):
        export_model(small("relu"), shape=SHAPE, kind="pt2")


def test_the_exported_file_is_loaded_from_storage_by_plain_pytorch_alone(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "model.pt2"
    export(Asked(model=str(checkpoint), image_shape=SHAPE, out=str(out)))
    assert "largest difference of logits" in capsys.readouterr().out
    card = out.with_suffix(".md").read_text()
    assert "Not measured" in card and "No robustness card was made" in card
    (code,) = re.findall(
        r"```python\n(.*?)\n```", card, re.S
    )  # the lines of the card are run as they stand, where sat_ray cannot be imported
    x = {
        count: torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(count))
        for count in (1, 5)
    }
    torch.save(x, tmp_path / "x.pt")
    program = (
        "import sys, torch\nsys.modules['sat_ray'] = None\nanswers = {}\n"
        f"for count, images in torch.load({str(tmp_path / 'x.pt')!r}).items():\n"
        + "".join(f"    {line}\n" for line in code.splitlines())
        + f"    answers[count] = logits.detach()\ntorch.save(answers, {str(tmp_path / 'y.pt')!r})\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", program], cwd=out.parent, check=True
    )
    model = load_model(str(checkpoint))
    for count, logits in torch.load(tmp_path / "y.pt").items():
        torch.testing.assert_close(logits, model(x[count]))


def test_onnx_that_is_not_installed_is_asked_for_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sat_ray.models import export

    monkeypatch.setattr(export, "ONNX_PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(
        ValueError,
        match=(
            r"^format onnx needs no_such_package; install them: pip install 'sat_ray\[onnx\]', or "
            r"choose pt2$"
        ),
    ):
        export_model(small("relu"), shape=SHAPE, kind="onnx")


@pytest.mark.fault
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ONNX_PACKAGES),
    reason="onnx is not installed",
)
@pytest.mark.parametrize(
    ("activation", "alpha"),
    [("relu", None), ("smoothrelu_learned", None), ("relu_smooth_backward", None), ("silu", 8.0),
     ("gelu", 4.0), ("mish", 16.0), ("gelu_learned", None)],
)  # fmt: skip
def test_an_onnx_file_computes_the_logits_of_the_model(
    activation: str, alpha: float | None
) -> None:
    _, parity = export_model(small(activation, alpha), shape=SHAPE, kind="onnx")
    assert parity.logits <= parity.bound


@pytest.mark.parametrize(
    ("model", "out", "said"),
    [
        ("no_such", "", "--out is empty"),
        ("no_such", "x.pt2", "holds no sweep; give the one that sweep no_such was started with"),
        ("some/where", "x.pt2", "model must be the folder of a checkpoint"),
        ("CHECKPOINT", "x.pt2", "give --image-shape C H W"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    model: str, out: str, said: str, checkpoint: Path, tmp_path: Path
) -> None:
    named = str(checkpoint) if model == "CHECKPOINT" else model
    with pytest.raises(ValueError) as error:
        export(Asked(model=named, out=out, storage=str(tmp_path)))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_that_is_not_in_the_storage_is_answered_with_those_that_are(
    tmp_path: Path,
) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=f"storage {nowhere} does not exist; give the one"):
        export(Asked(model="digits", out="x.pt2", storage=str(nowhere)))
    Storage(str(tmp_path / "digits")).write_json("config.json", {})
    with pytest.raises(ValueError, match=r"sweep 'digit' is unknown; did you mean digits\?"):
        export(Asked(model="digit", out="x.pt2", storage=str(tmp_path)))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("leaderboard.json", "leaderboard.json does not match its checksum"),
        ("cards/c-s0.json", "cards/c-s0.json does not match its checksum"),
        ("config.json", "config.json was changed after the report was written"),
    ],
)
def test_a_model_card_quotes_no_figure_that_was_changed_by_hand(
    path: str, said: str, tmp_path: Path
) -> None:
    config = RECIPES["digits_smoke"]()
    sweep = Storage.at(tmp_path / "runs" / "s")
    folder = sweep.child("checkpoints/train/c")
    model = small("silu")
    assert model.spec is not None
    save_model(folder, model.state_dict(), spec=model.spec, about={})
    row = {"checkpoint": folder.uri, "outcomes": "outcomes/c-s0.parquet", "robust_accuracy": 0.4}
    board = {"rows": [row], CONFIG_HASH: config_hash(config)}
    sweep.write_json("config.json", to_json(config))
    sweep.write_json("leaderboard.json", sealed(board))
    card = filled(CARD, {"card": {"verdict": "FLAG"}})["payload"]["card"]
    sweep.write_json("cards/c-s0.json", sealed(card))
    changed: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "leaderboard.json": lambda value: value | {"rows": [row | {"robust_accuracy": 0.9}]},
        "cards/c-s0.json": lambda value: value | {"verdict": "PASS"},
        "config.json": lambda value: value | {"training": value["training"] | {"epochs": 99}},
    }
    found = locate(folder.uri, Storage.at(tmp_path / "runs"))
    assert found.board == board and recorded_card(found) == card
    sweep.write_json(path, changed[path](sweep.read_object(path)))
    with pytest.raises(ValueError) as error:
        recorded_card(locate(folder.uri, Storage.at(tmp_path / "runs")))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_weights_of_another_model_in_the_champions_folder_are_not_exported(
    tmp_path: Path,
) -> None:
    """Both files of the folder were replaced, so they fit each other, but not the record."""
    sweep = Storage.at(tmp_path / "runs" / "s")
    made = trained(small("silu"), Records(sweep))
    sweep.write_json("config.json", to_json(RECIPES["digits_smoke"]()))
    folder = sweep.child(made.payload["path"])
    other = build_model(
        "small_resnet", activation="silu", num_classes=10, in_channels=1, width=4, seed=1
    )
    assert other.spec is not None
    save_model(folder, other.state_dict(), spec=other.spec, about={})
    out = tmp_path / "m.pt2"
    with pytest.raises(ValueError, match=r"does not match its sha256 .* was replaced: restore"):
        export(Asked(model=folder.uri, out=str(out), image_shape=SHAPE))
    assert not out.exists()


@pytest.mark.parametrize(
    "board",
    [{}, {"rows": [1]}, {"rows": []}, {"rows": [{"checkpoint": "c", "outcomes": 1}]}, DAMAGED],
    ids=["empty", "no rows", "another row", "no text", "text for numbers"],
)
def test_a_damaged_leaderboard_is_named_and_nothing_is_written(
    board: dict[str, object], tmp_path: Path
) -> None:
    sweep = Storage.at(tmp_path / "runs" / "s")
    folder = sweep.child("checkpoints/train/c")
    model = small("silu")
    assert model.spec is not None
    save_model(folder, model.state_dict(), spec=model.spec, about={})
    sweep.write_json("config.json", to_json(RECIPES["digits_smoke"]()))
    sweep.write_json("leaderboard.json", board)
    out = tmp_path / "m.pt2"
    with pytest.raises(ValueError, match=r"leaderboard\.json.*; run again: "):
        export(Asked(model=folder.uri, out=str(out), image_shape=SHAPE))
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


@pytest.mark.parametrize("checkpoint", [7, "s/checkpoints/a/../../../b"])
def test_a_champion_that_is_in_no_folder_of_its_sweep_is_refused_by_the_leaderboards_name(
    checkpoint: object, tmp_path: Path
) -> None:
    sweep = Storage.at(tmp_path / "s")
    sweep.write_json("config.json", to_json(RECIPES["digits_smoke"]()))
    board = {"rows": [], "champion": {"row": {"checkpoint": checkpoint}}}
    sweep.write_json("leaderboard.json", sealed(board))
    with pytest.raises(ValueError, match=r"leaderboard\.json names no champion; run again: "):
        locate("s", Storage.at(tmp_path))
