"""Training starts from weights: fitted by name, in the key by content, validated before the first
step; what does not fit is refused with the names.
"""

import dataclasses
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
from repository import ROOT
from sweeps import digits_shards
from trainings import BALL

from sat_ray.checkpoint import load_model, save_model
from sat_ray.integrations.command_line import run
from sat_ray.integrations.mlflow.metrics import record_points
from sat_ray.models import ModelSpec, Normalized, build_model, model_from_spec
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import ModelSettings, SweepConfig
from sat_ray.sweep.execute.initial_weights import (
    InitialWeights,
    check_initial_weights,
    initial_weights,
    start_from,
)
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.trainings import final_tasks
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TrainingTask
from sat_ray.training.settings import TrainingSettings


def small(
    classes: int = 10, activation: str = "relu", *, seed: int = 5, width: int = 8
) -> Normalized:
    """Build the network of these tests."""
    return build_model(
        "small_resnet",
        activation=activation,
        num_classes=classes,
        in_channels=1,
        width=width,
        mean=(0.25,),
        std=(0.5,),
        seed=seed,
    )


def saved(model: Normalized, path: Path, **changes: torch.Tensor) -> str:
    """Write weights as a file of safetensors; changes: tensors to put in their places."""
    safetensors.torch.save_file(model.state_dict() | changes, path)
    return str(path)


def refusal(uri: str, model: Normalized) -> str:
    """Return why weights are refused, which must be said in one line."""
    assert model.spec is not None
    with pytest.raises(ValueError) as caught:
        check_initial_weights(uri, model.spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def started(uri: str, model: Normalized, *, seed: int = 5) -> Normalized:
    """Load weights into a model."""
    assert model.spec is not None
    start_from(initial_weights(uri, model.spec), model, model.spec, seed=seed)
    return model


def test_every_tensor_is_that_of_the_file_and_the_key_is_its_content(tmp_path: Path) -> None:
    source = small()
    uri = saved(source, tmp_path / "one.safetensors")
    copy = saved(source, tmp_path / "two.safetensors")
    model = started(uri, small(seed=6), seed=6)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.spec is not None
    hashes = {initial_weights(one, model.spec).sha256 for one in (uri, copy)}
    other = saved(small(seed=7), tmp_path / "three.safetensors")
    assert len(hashes) == 1 and initial_weights(other, model.spec).sha256 not in hashes


def test_the_folder_of_a_checkpoint_will_do_and_its_mean_and_std_come_along(tmp_path: Path) -> None:
    source = small(activation="silu")
    assert source.spec is not None
    save_model(Storage.at(tmp_path), source.state_dict(), spec=source.spec, about={})
    other = dataclasses.replace(source.spec, mean=(0.4,), std=(0.3,))
    model = started(str(tmp_path), model_from_spec(other, seed=6), seed=6).eval()
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model(x), source.eval()(x))


def test_a_head_for_other_classes_keeps_its_seeded_random_weights(tmp_path: Path) -> None:
    uri = saved(small(), tmp_path / "ten.safetensors")
    fresh = small(4, seed=6).state_dict()
    loaded = started(uri, small(4, seed=6), seed=6).state_dict()
    heads = {name for name in fresh if torch.equal(fresh[name], loaded[name])}
    assert {"body.fc.weight", "body.fc.bias"} <= heads
    assert not torch.equal(fresh["body.conv1.weight"], loaded["body.conv1.weight"])


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "repvit_m0_9"])
def test_every_head_of_a_distilled_network_keeps_its_random_weights(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model(name).state_dict(), path)
    spec = ModelSpec(name=f"timm:{name}", num_classes=10)
    assert "not loaded: 4 tensors" in check_initial_weights(str(path), spec)


def test_what_a_sweep_takes_from_weights_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "weights.pt")
    weights = small(4).state_dict()
    averaged = {f"module.{name}": tensor.half() for name, tensor in weights.items()}
    torch.save({"epoch": 3, "model": weights, "model_ema": averaged}, path)
    words = ["digits_smoke", "--model.initial-weights", path, "--storage", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words, "--dry-run"])
    assert run.main(lambda command: None, about="") == 0
    said = capsys.readouterr().out
    taken = "entry model_ema.body (others that fit: model.body); not loaded: 2 tensors"
    assert f"weights {path}: {taken} (body.fc.weight, body.fc.bias)" in said


@pytest.mark.parametrize(("ours", "theirs"), [("smoothrelu_learned", "relu"), ("silu",) * 2])
def test_alphas_stay_where_the_weights_have_others(ours: str, theirs: str, tmp_path: Path) -> None:
    uri = saved(small(activation=theirs), tmp_path / "weights.safetensors")
    assert len(started(uri, small(activation=ours)).state_dict()) >= 10
    learned = saved(small(activation="smoothrelu_learned"), tmp_path / "learned.safetensors")
    model = started(learned, small(activation=ours, seed=6), seed=6)
    assert torch.equal(model.state_dict()["body.fc.weight"], small().state_dict()["body.fc.weight"])


def test_what_does_not_fit_is_refused_with_the_names(tmp_path: Path) -> None:
    model = small()
    other = saved(
        build_model("preact_resnet18", num_classes=10, in_channels=1, seed=0),
        tmp_path / "other.safetensors",
    )
    assert "layer1.conv1.weight" in refusal(other, model)
    wide = saved(small(width=12), tmp_path / "wide.safetensors")
    assert "body.conv1.weight must have the shape (8, 1, 3, 3), got (12, 1, 3, 3)" in refusal(
        wide, model
    )
    bad = model.state_dict()["body.layer2.conv1.weight"].clone()
    bad[0, 0, 0, 0] = torch.nan
    spoiled = saved(model, tmp_path / "nan.safetensors", **{"body.layer2.conv1.weight": bad})
    assert "body.layer2.conv1.weight holds NaN" in refusal(spoiled, model)
    assert "where there is none" in refusal(str(tmp_path / "nowhere.safetensors"), model)
    assert "where there is none" in refusal(str(tmp_path), model)


def test_weights_that_changed_since_the_sweep_began_are_refused(tmp_path: Path) -> None:
    uri, model = saved(small(), tmp_path / "weights.safetensors"), small()
    assert model.spec is not None
    with pytest.raises(ValueError, match="have changed since this sweep began"):
        start_from(InitialWeights(uri, "0" * 64), model, model.spec, seed=0)


def test_weights_of_timm_are_for_networks_of_timm() -> None:
    with pytest.raises(ValueError, match=r"timm has weights for its own networks \(timm:NAME\)"):
        ModelSettings(name="resnet18", initial_weights="timm:pretrained")


Tasks = Callable[..., TrainingTask]


@pytest.fixture
def task_of(tmp_path: Path) -> Tasks:
    """Return a function that describes a short training of the digits."""
    dataset = digits_shards(tmp_path / "data", rows=2000)

    def describe(**model: Any) -> TrainingTask:
        training = TrainingSettings(epochs=1, warmup_epochs=0.5, validation_steps=4)
        config = SweepConfig(
            recipe="toy",
            threat_model=BALL,
            model=ModelSettings(**{"width": 8} | model),
            training=training,
        )
        return final_tasks(config, dataset, [SearchPoint(activation="silu")])[0]

    return describe


def test_a_training_records_the_accuracy_that_it_starts_from(
    task_of: Tasks, tmp_path: Path
) -> None:
    first = train_and_commit(task_of(), Records(Storage.at(tmp_path / "sweep")))
    folder = str(tmp_path / "sweep" / first.payload["path"])
    task = task_of(initial_weights=folder)
    assert task.key != task_of().key
    assert task.inputs["initial_weights"] == first.payload["sha256"]
    record = train_and_commit(task, Records(Storage.at(tmp_path / "second")))
    before = record.payload["history"][0]
    assert before["epoch"] == -1
    assert before["val/clean_accuracy"] == first.payload["val_clean_accuracy"]
    assert before["val/robust_accuracy"] == first.payload["val_robust_accuracy"]
    steps = [one.step for one in record_points(record) if one.name == "val/clean_accuracy"]
    assert steps == [0, 1]
    assert len(record.payload["history_times"]) == len(record.payload["history"])
    loaded = load_model(str(tmp_path / "second" / record.payload["path"]))  # without the source
    assert loaded.spec == task.model


class Hub:
    """A server on this machine that answers as the Hugging Face hub does for one repository."""

    def __init__(self, repository: str, weights: dict[str, torch.Tensor]) -> None:
        data = safetensors.torch.save(weights)
        self.requests = requests = list[str]()

        class Answer(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                there = self.path == f"/{repository}/resolve/main/model.safetensors"
                requests.append(f"{self.command} {self.path}")
                self.send_response(200 if there else 404)
                self.send_header("Content-Length", str(len(data) if there else 0))
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.end_headers()
                if there and self.command == "GET":
                    self.wfile.write(data)

            do_GET = do_HEAD  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def theirs() -> Any:
    return timm.create_model("test_vit", pretrained=False)


@pytest.fixture
def hub(theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the weights to this process, whose client keeps them below tmp_path."""
    made = Hub("timm/test_vit.r160_in1k", theirs.state_dict())
    files = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield made
    made.close()


def test_weights_of_timm_are_downloaded_once_and_start_its_network(
    theirs: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"num_classes": 10, "image_size": (160, 160), "seed": 0}
    model = build_model("timm:test_vit", activation="silu", **options)
    model = started("timm:pretrained", model, seed=0)
    assert torch.equal(model.body.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)  # type: ignore[union-attr, index]
    assert model.mean.flatten().tolist() == pytest.approx(theirs.pretrained_cfg["mean"])
    assert model.body.head.weight.shape[0] == 10  # type: ignore[union-attr]
    file = "/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    assert hub.requests.count(f"GET {file}") == 1, hub.requests
    assert "timm has for test_vit: timm:r160_in1k" in refusal("timm:zzz", model)
    hub.close()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    again = build_model("timm:test_vit", activation="silu", **options | {"seed": 1})
    again = started("timm:r160_in1k", again, seed=1)
    assert torch.equal(again.body.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)  # type: ignore[union-attr, index]


def test_weights_that_the_hub_does_not_have_are_refused_in_one_line(hub: Hub) -> None:
    model = build_model("timm:test_vit2", activation="silu", num_classes=10, image_size=(160, 160))
    assert "timm cannot load the weights of test_vit2" in refusal("timm:pretrained", model)
    assert hub.requests, "the hub was tried"


def test_a_dry_run_names_the_weights_of_timm_and_downloads_nothing(
    hub: Hub, tmp_path: Path
) -> None:
    options = ("--model.name", "timm:test_vit", "--model.patch-size", "2", "--dry-run")
    place = ("--storage", str(tmp_path / "runs"), "--model.initial-weights", "timm:pretrained")
    command = [sys.executable, "pipelines/sweep.py", "digits_smoke", *options, *place]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub")}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    (line,) = (one for one in shown.stdout.splitlines() if one.startswith("  initial weights"))
    where = "downloaded when the sweep starts: timm/test_vit.r160_in1k of the Hugging Face hub"
    assert line.split(maxsplit=2)[2] == f"timm:pretrained, {where}"
    spec = build_model("timm:test_vit", num_classes=10, image_size=(160, 160)).spec
    assert spec is not None
    with pytest.raises(ValueError, match="timm has for test_vit: timm:r160_in1k"):
        check_initial_weights("timm:zzz", spec, download=False)
    assert not hub.requests and not (tmp_path / "hub").exists()
