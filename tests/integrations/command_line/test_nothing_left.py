"""A command that refuses its input leaves the folder that it was started in as it was.

S3 that does not answer is refused in one line, which comes without waiting for an outage's end.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sweeps import digits_shards, parsed

from sat_ray.integrations.command_line import compare, export, run, status
from sat_ray.integrations.command_line.evaluate import evaluate_model
from sat_ray.storage import outages
from sat_ray.storage.store import Storage
from sat_ray.sweep.plan.datasets import dataset_uri

NETWORK = """
import torch
from torch import nn
def good(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
def number(): return 3
"""

REFUSED_LATER = """
import torch
from torch import nn
def of(classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
def one(): return of(1)
def ten():
    torch.manual_seed(0)
    return of(10)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Start in a folder with images, and outside of any Ray, so that nothing can be computed."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for name in ("SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "left_alone_net.py").write_text(NETWORK)
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "ok.npz", images=images, labels=np.arange(40) % 10)
    np.savez(tmp_path / "dark.npz", images=images // 128, labels=np.arange(40) % 10)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def evaluate(**options: str) -> Callable[[], int]:
    given = {"model": "left_alone_net:good", "data": "ok.npz"} | options
    return lambda: evaluate_model([f"--{name}={value}" for name, value in given.items()])


def command(main: Callable[..., int], *words: str) -> Callable[[], int]:
    def start() -> int:
        sys.argv = ["command", *words]
        return main(about="")

    return start


def alone(name: str, *words: str) -> Callable[[], int]:
    return command(lambda about: run.main(run.only(name), about=about), *words)


REFUSED = {
    "no model": evaluate(model="nowhere"),
    "no data": evaluate(data="nowhere.npz"),
    "no image above 1": evaluate(data="dark.npz"),
    "no network": evaluate(model="left_alone_net:number"),
    "no weights": evaluate(weights="nowhere.pt"),
    "too many images": evaluate(images="41"),
    "no split": evaluate(split="train"),
    "MLflow's model": evaluate(model="models:/nothing/1"),
    "search before prepare": alone("search", "digits_smoke"),
    "train before prepare": alone("train", "digits_smoke"),
    "report before prepare": alone("report", "digits_smoke"),
    "tracker's folder": alone("prepare", "digits_smoke", "--tracking-uri", "folder"),
    "no path of the images": alone("prepare", "imagenet_resnet50"),
    "export": command(export.main, "digits", "--out", "new/model.pt2"),
    "status": command(status.main, "digits"),
    "compare": command(compare.main, "a", "b", "--json", "new/found.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    before = {str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert REFUSED[case]() == 2
    assert capsys.readouterr().err.startswith("error: ")
    after = {str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_images_stay_where_their_model_is_refused_and_the_next_evaluation_finds_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "refused_later.py").write_text(REFUSED_LATER)
    assert evaluate(model="refused_later:one")() == 2
    assert "K >= 2 classes" in capsys.readouterr().err
    written = _times(folder / "runs")
    assert any(path.suffix == ".parquet" for path in written)
    assert {path.relative_to(folder / "runs").parts[0] for path in written} == {"data"}
    assert evaluate(model="refused_later:ten")() == 2
    assert "no Ray answers" in capsys.readouterr().err
    assert _times(folder / "runs" / "data") == written


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_stage_that_lacks_its_inputs_makes_no_folder_of_its_sweep(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    words = ("digits_smoke", "--name", "new")
    digits_shards(Path(dataset_uri(parsed(*words).config, Storage.at("runs"))))
    assert alone("train", *words)() == 2
    assert not (folder / "runs" / "new").exists()


PLACE = "s3://bucket/x"
ON_S3 = ("digits", "--storage", PLACE, "--tracking-uri", "http://127.0.0.1:9")
WITHOUT_ANSWER = {
    "status": command(status.main, "--storage", PLACE),
    "status of a sweep": command(status.main, *ON_S3[:3]),
    "compare": command(compare.main, f"{PLACE}/a", f"{PLACE}/b"),
    "export": command(export.main, *ON_S3[:3], "--out=m.onnx"),
    "export of a checkpoint": command(export.main, f"{PLACE}/checkpoint", "--out=m.onnx"),
    "stage": alone("report", *ON_S3),
    "config": alone("report", f"--config={PLACE}/a.yaml", "--dry-run"),
    "initial weights": alone("report", f"--model.initial-weights={PLACE}/w.pt", "--dry-run"),
    "images": alone("prepare", "--data.dataset=image_folder", f"--data.path={PLACE}"),
    "storage of an evaluation": evaluate(storage=PLACE),
    "its model": evaluate(model=f"{PLACE}/m"),
    "its weights": evaluate(weights=f"{PLACE}/w.pt"),
    "its data": evaluate(data=f"{PLACE}/d"),
}


@pytest.mark.parametrize("case", WITHOUT_ANSWER)
def test_s3_that_does_not_answer_is_one_line_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(outages, "OUTAGE_SECONDS", 0)  # else a fault that this finds takes minutes
    monkeypatch.setenv("RAY_ADDRESS", "")  # images are looked at on this machine alone
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert WITHOUT_ANSWER[case]() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert PLACE in line
    assert "http://127.0.0.1:9 does not answer; start it, or correct AWS_ENDPOINT_URL" in line
