"""MLflow for real, on SQLite and local folders, read back through MlflowClient."""

import dataclasses
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import mlflow.pytorch
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from sweeps import filled
from test_mlflow_database import start
from torch import Tensor, nn
from trainings import small_model
from waiting import PATIENCE_SECONDS

from sat_ray.attacks.base import require_inference_mode
from sat_ray.checkpoint import save_model as save_weights
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources.registry import dataset_source
from sat_ray.evaluation.external.loading import kind_of, load_source
from sat_ray.integrations.mlflow import MlflowTracker, fetch_model
from sat_ray.integrations.mlflow.preflight import check_tracking
from sat_ray.integrations.mlflow.projection.whole import Projection
from sat_ray.integrations.mlflow.values import Holder, Point, Used
from sat_ray.models import ModelSpec, Normalized, model_from_spec
from sat_ray.models.export import NotExportedError
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import CostSettings
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import SEARCH, TRAIN

SHAPE = (1, 8, 8)
POINTS = [
    Point("val/robust_accuracy", 0.1 * epoch, epoch, 1_700_000_000.5 + epoch)
    for epoch in range(1, 4)
]
# torch's own, with a backward pass of its own, with a parameter, with an alpha; those of all others
# are compared where they are exported (tests/models/test_export.py)
EXPORTED = ("relu", "relu_smooth_backward", "silu_learned", "parametric_softplus")
LOAD_ELSEWHERE = """
import json, sys
sys.modules["sat_ray"] = None  # even where it is installed, it may not be imported
import mlflow.pytorch, numpy as np, torch
torch.set_num_threads(1)
answers = {}
for name, uri in json.loads(sys.stdin.read()).items():  # sent when the imports are long done
    model = mlflow.pytorch.load_model(uri)
    for n in (1, 5):
        x = torch.from_numpy(np.load(f"x{n}.npy")).requires_grad_()
        logits = model(x)
        (logits * torch.arange(10)).sum().backward()
        answers[f"{name}/{n}/logits"] = logits.detach().numpy()
        answers[f"{name}/{n}/gradient"] = x.grad.numpy()
np.savez("answers.npz", **answers)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking with spaces")


@pytest.fixture(scope="module")
def uri(folder: Path, fresh: Callable[[Path], str]) -> str:
    return fresh(folder)


@pytest.fixture(scope="module")
def client(uri: str) -> MlflowClient:
    check_tracking(uri)
    MlflowTracker(uri, experiment="first", artifact_root=None)
    return MlflowClient(uri, uri)


@pytest.fixture
def experiment(request: pytest.FixtureRequest, client: MlflowClient) -> str:
    return str(request.node.name)


@pytest.fixture
def tracker(uri: str, folder: Path, experiment: str) -> MlflowTracker:
    return MlflowTracker(uri, experiment=experiment, artifact_root=str(folder / "artifacts"))


def write(tracker: MlflowTracker) -> tuple[str, str]:
    """Project one sweep with one trial, as the driver does."""
    parent = tracker.run("sweep-1", name="digits", tags={"stage": "sweep"}, params={})
    child = tracker.run(
        "trial-1",
        name="silu",
        parent=parent,
        tags={"stage": "search"},
        params={"alpha": None, "model.name": "small_resnet", "epochs": 3},
    )
    tracker.log(child, POINTS)
    tracker.uses(child, [Used("digits", "d" * 64, "train", {"images": 900})])
    tracker.artifact(child, "tables/leaderboard.md", b"| a |")
    tracker.note(child, "**silu**")
    return parent, child


def runs_of(client: MlflowClient, experiment: str) -> list[mlflow.entities.Run]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_what_is_written_is_read_back(
    tracker: MlflowTracker, client: MlflowClient, folder: Path
) -> None:
    parent, child = write(tracker)
    run = client.get_run(child)
    assert run.info.run_name == "silu"
    assert run.data.params == {"alpha": "none", "model.name": "small_resnet", "epochs": "3"}
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["stage"] == "search"
    assert run.data.tags["mlflow.note.content"] == "**silu**"
    history = sorted(
        client.get_metric_history(child, "val/robust_accuracy"), key=lambda point: point.step
    )
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (p.step, p.value, round(p.seconds * 1000)) for p in POINTS
    ]
    assert Path(client.download_artifacts(child, "tables/leaderboard.md")).read_bytes() == b"| a |"
    assert Path(run.info.artifact_uri).is_relative_to(folder / "artifacts")
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, json.loads(used.dataset.profile)) == (
        "digits",
        "d" * 36,
        {"images": 900},
    )
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "train")]


def test_a_restart_adopts_runs_and_doubles_nothing(
    tracker: MlflowTracker, client: MlflowClient, uri: str, experiment: str
) -> None:
    parent, child = write(tracker)
    tracker.complete(child, content="abc")
    again = MlflowTracker(uri, experiment=experiment, artifact_root=None)
    assert again.is_complete(child, content="abc")
    assert not again.is_complete(child, content="other")
    assert not again.is_complete(parent, content="abc")
    assert write(again) == (parent, child)
    assert len(runs_of(client, experiment)) == 2
    assert len(client.get_metric_history(child, "val/robust_accuracy")) == len(POINTS)
    assert len(client.get_run(child).inputs.dataset_inputs) == 1


class CountedStorage(Storage):
    """A folder that remembers what was read from it."""

    reads: ClassVar[list[str]] = []

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return super().read(path)


def commit_trials(records: Records, names: str) -> None:
    """Commit one short search trial for each name."""
    for name in names:
        history = [{"epoch": 0, "val/robust_accuracy": 0.5}]
        payload = {
            "configuration": SearchPoint(activation="elu", alpha=1.0).to_json(),
            "name": name,
            "seed": 0,
            "until": 1,
        }
        records.commit(
            SEARCH,
            name,
            **filled(SEARCH, payload | {"history": history, "accelerator_seconds": 20.0}),
            seconds=20.0,
        )


def test_following_a_growing_sweep_reads_each_record_once(
    tracker: MlflowTracker, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    storage = CountedStorage(str(tmp_path))
    projection = Projection(Sweep(RECIPES["digits_smoke"](), "toy", storage, storage, ()), tracker)
    writer = Records(Storage(str(tmp_path)))
    for batch in ("abc", "", "de", ""):
        commit_trials(writer, batch)
        projection.update()
    records = [path for path in storage.reads if path.startswith("state/search/")]
    assert sorted(records) == [f"state/search/{name}.json" for name in "abcde"]
    writer.supersede(writer.all(SEARCH)[0])
    assert (
        len(projection.records.all(SEARCH)) == 4
    )  # what is not there any more is not shown from memory
    names = [run.info.run_name for run in runs_of(client, experiment)]
    assert sorted(names) == [*["elu α=1"] * 5, "search", "toy"]


def test_a_trial_shows_what_it_cost_at_the_price_of_today(
    tracker: MlflowTracker, client: MlflowClient, experiment: str, uri: str, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    commit_trials(Records(storage), "a")
    for price, money in ((0.0, None), (36.0, 0.2), (18.0, 0.1)):  # 20 seconds
        config = dataclasses.replace(
            RECIPES["digits_smoke"](),
            cost=CostSettings(price_per_accelerator_hour=price, currency="EUR"),
        )
        again = MlflowTracker(uri, experiment=experiment, artifact_root=None)
        Projection(Sweep(config, "toy", storage, storage, ()), again).update()
        runs = {run.info.run_name: run.data for run in runs_of(client, experiment)}
        assert runs["elu α=1"].metrics["cost/accelerator_seconds"] == 20.0
        assert runs["elu α=1"].metrics.get("cost/money") == (
            None if money is None else pytest.approx(money)
        )
        assert runs["toy"].tags["sat_ray.price"] == (
            f"{price:g} EUR an accelerator-hour" if price else "none"
        )


def test_a_crash_right_after_creation_is_repaired(
    tracker: MlflowTracker, client: MlflowClient, uri: str, experiment: str
) -> None:
    bare = tracker.run("trial", name="old name", tags={}, params={})
    again = MlflowTracker(uri, experiment=experiment, artifact_root=None)
    assert (
        again.run("trial", name="new name", tags={"stage": "search"}, params={"epochs": 3}) == bare
    )
    run = client.get_run(bare)
    assert (run.info.run_name, run.data.tags["stage"], run.data.params) == (
        "new name",
        "search",
        {"epochs": "3"},
    )


def test_a_crash_before_a_run_has_ended_is_repaired(
    tracker: MlflowTracker,
    client: MlflowClient,
    uri: str,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, child = write(tracker)
    monkeypatch.setattr(tracker._client, "set_terminated", lambda *_: 1 / 0)
    late = [Point("late", 1.0, 0, 1e9)]
    with pytest.raises(ZeroDivisionError):
        tracker.complete(child, content="abc", points=late)
    again = MlflowTracker(uri, experiment=experiment, artifact_root=None)
    assert not again.is_complete(child, content="abc")
    again.complete(child, content="abc", points=late)
    assert again.is_complete(child, content="abc")
    assert len(client.get_metric_history(child, "late")) == 1
    assert client.get_run(child).info.status == "FINISHED"


def test_a_trial_is_written_in_four_requests(
    tracker: MlflowTracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hundreds of trials that take seconds, each request counts."""
    requests = list[str]()

    def counted(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def asking(*given: Any, **more: Any) -> Any:
            requests.append(name)
            return ask(*given, **more)

        return asking

    writing = ("create_run", "log_batch", "log_inputs", "set_tag", "set_terminated", "update_run")
    for name in writing:
        monkeypatch.setattr(tracker._client, name, counted(name, getattr(tracker._client, name)))
    run_id = tracker.run("trial", name="silu", tags={"kind": "trial"}, params={})
    tracker.uses(
        run_id, [Used("digits", f"d-{split}", split, {"images": 9}) for split in ("train", "val")]
    )
    tracker.complete(run_id, content="abc", points=POINTS, params={"alpha": None, "epochs": 3})
    assert requests == ["create_run", "log_inputs", "log_batch", "set_terminated"]
    run = client.get_run(run_id)
    assert run.data.params == {"alpha": "none", "epochs": "3"} and run.data.metrics.keys() == {
        point.name for point in POINTS
    }
    assert len(run.inputs.dataset_inputs) == 2
    tracker.complete(
        run_id, content="abd", params={"alpha": None, "epochs": 3}
    )  # repeated, as after a crash
    assert client.get_run(run_id).data.params == {"alpha": "none", "epochs": "3"}


def test_no_run_is_left_running_or_active(
    tracker: MlflowTracker, client: MlflowClient, experiment: str
) -> None:
    parent, child = write(tracker)
    tracker.model(child, small("relu"), name="model", input_shape=SHAPE)
    tracker.complete(child, content="a")
    tracker.complete(parent, content="b")
    assert {run.info.run_id: run.info.status for run in runs_of(client, experiment)} == {
        child: "FINISHED",
        parent: "FINISHED",
    }
    assert mlflow.active_run() is None
    assert not mlflow.is_tracking_uri_set()


def test_batches_larger_than_a_request_and_odd_values_are_written_once(
    tracker: MlflowTracker, client: MlflowClient
) -> None:
    run_id = tracker.run(
        "big", name="big", tags={}, params={f"p{i:03}": "x" * 900 for i in range(230)}
    )
    points = [Point("loss", i / 7, i, 1e9 + i) for i in range(1500)] + [
        Point("bad", math.nan, 0, 1e9),
        Point("bad", math.inf, 1, 1e9),
    ] * 2
    tracker.log(run_id, points)
    tracker.log(run_id, points)
    assert len(client.get_metric_history(run_id, "loss")) == 1500
    assert len(client.get_metric_history(run_id, "bad")) == 2
    params = client.get_run(run_id).data.params
    assert len(params) == 230
    assert set(params.values()) == {"x" * 500}
    late = [Point("late", i / 7, i, 1e9 + i) for i in range(1500)]
    tracker.complete(run_id, content="abc", points=late, params={f"q{i}": i for i in range(230)})
    assert len(client.get_metric_history(run_id, "late")) == 1500
    assert len(client.get_run(run_id).data.params) == 460


def test_an_artifact_is_replaced_and_stays_inside_its_run(
    tracker: MlflowTracker, client: MlflowClient
) -> None:
    run_id = tracker.run("files", name="files", tags={}, params={})
    for data in (b"old", b"new"):
        tracker.artifact(run_id, "config.json", data)
    assert Path(client.download_artifacts(run_id, "config.json")).read_bytes() == b"new"
    for path in ("../config.json", "/config.json", ""):
        with pytest.raises(ValueError, match="artifact path"):
            tracker.artifact(run_id, path, b"")


def small(activation: str) -> Normalized:
    return small_model(activation).eval()


@pytest.fixture(scope="module")
def reloaded(
    client: MlflowClient, uri: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Export a model of each kind of activation here and run all of them in a process that cannot
    import sat_ray.
    """
    tracker = MlflowTracker(uri, experiment="models", artifact_root=str(folder / "artifacts"))
    run_id = tracker.run("models", name="models", tags={}, params={})
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for n in (1, 5):
        np.save(elsewhere / f"x{n}.npy", images(n))
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", LOAD_ELSEWHERE]
    with subprocess.Popen(
        command, cwd=elsewhere, env=environment, stdin=subprocess.PIPE, text=True
    ) as process:
        uris = {
            name: tracker.model(run_id, small(name), name=name, input_shape=SHAPE)
            for name in EXPORTED
        }
        process.communicate(json.dumps(uris), timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    return dict(np.load(elsewhere / "answers.npz"))


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("activation", EXPORTED)
def test_a_model_computes_the_same_without_the_project(
    reloaded: dict[str, np.ndarray], activation: str, n: int
) -> None:
    x = torch.from_numpy(images(n)).requires_grad_()
    logits = small(activation)(x)
    (logits * torch.arange(10)).sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(reloaded[f"{activation}/{n}/logits"], logits.detach().numpy())
    gradient, ours = reloaded[f"{activation}/{n}/gradient"], x.grad.numpy()
    if activation == "silu_learned":  # the exported graph differentiates the formula
        np.testing.assert_allclose(gradient, ours, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal(gradient, ours)


def test_a_model_is_attached_once_with_signature_example_and_requirements(
    tracker: MlflowTracker, client: MlflowClient
) -> None:
    run_id = tracker.run("model", name="model", tags={}, params={})
    model_uri = tracker.model(run_id, small("silu"), name="model", input_shape=SHAPE)
    assert tracker.model(run_id, small("silu"), name="model", input_shape=SHAPE) == model_uri
    (attached,) = client.get_run(run_id).outputs.model_outputs
    assert model_uri == f"models:/{attached.model_id}"
    files = Path(client.get_logged_model(attached.model_id).artifact_location)
    about = mlflow.models.Model.load(str(files))
    assert [spec.shape for spec in about.signature.inputs] == [(-1, *SHAPE)]
    assert [spec.shape for spec in about.signature.outputs] == [(-1, 10)]
    assert np.asarray(about.load_input_example(str(files))).shape == (2, *SHAPE)
    assert {
        line.partition("==")[0] for line in (files / "requirements.txt").read_text().split()
    } == {"mlflow", "torch", "numpy"}
    assert (files / "data" / "model.pt2").is_file()


class Branches(nn.Module):
    """A network whose path depends on its numbers, which torch.export cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small("silu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits + 1 if logits.mean().item() > 1e9 else logits


def test_a_network_that_cannot_be_exported_raises_one_line_and_leaves_no_model(
    tracker: MlflowTracker, client: MlflowClient, capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = tracker.run("branches", name="branches", tags={}, params={})
    with pytest.raises(NotExportedError, match="cannot be exported") as error:
        tracker.model(run_id, Branches().eval(), name="model", input_shape=SHAPE)
    assert "\n" not in str(error.value) and not client.get_run(run_id).outputs.model_outputs
    assert "def forward" not in "".join(capfd.readouterr())


def test_a_sweep_of_a_network_that_cannot_be_exported_has_its_runs_without_models(
    tracker: MlflowTracker, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    config, storage = RECIPES["digits_smoke"](), Storage(str(tmp_path))
    write_dataset(
        dataset_source("digits"), Storage(dataset_uri(config, storage)), rows_per_shard=900
    )
    spec = ModelSpec(
        name="own_parts:branches",
        activation="silu",
        num_classes=10,
        in_channels=1,
        mean=(0.5,),
        std=(0.5,),
    )
    digest = save_weights(
        storage.child("net"), model_from_spec(spec, seed=0).state_dict(), spec=spec, about={}
    )
    payload = {
        "configuration": SearchPoint(activation="silu").to_json(),
        "name": "silu-s0",
        "seed": 0,
        "until": 1,
    }
    payload |= {
        "history": [{"epoch": 0, "val/robust_accuracy": 0.5}],
        "path": "net",
        "sha256": digest,
    }
    record = Records(storage).commit(TRAIN, "one", **filled(TRAIN, payload), seconds=1.0)
    projection = Projection(Sweep(config, "toy", storage, storage, ()), tracker)
    projection.update()
    assert projection.with_model == {record.key: ""}
    assert projection.not_exported.startswith("the model cannot be exported (")
    assert "silu · seed 0" in [run.info.run_name for run in runs_of(client, experiment)]


def test_a_logged_model_is_fetched_and_a_pickled_one_needs_permission(
    tracker: MlflowTracker, uri: str, tmp_path: Path
) -> None:
    run_id = tracker.run("fetched", name="fetched", tags={}, params={})
    model_uri = tracker.model(run_id, small("silu"), name="model", input_shape=SHAPE)
    found = fetch_model(model_uri, tracking_uri=uri, folder=str(tmp_path))
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(load_source("pt2", str(found))[0](x), small("silu")(x))
    with pytest.raises(ValueError, match=r"models:/nothing/7 cannot be fetched"):
        fetch_model("models:/nothing/7", tracking_uri=uri, folder=str(tmp_path))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SHAPE)), 10)).train()
    mlflow.pytorch.save_model(
        linear, str(tmp_path / "pickled"), serialization_format="pickle", pip_requirements=["torch"]
    )
    assert kind_of(str(tmp_path / "pickled")) == "mlflow"
    with pytest.raises(
        ValueError,
        match=r"is pickled, and loading it would run whatever code it holds.*--allow-pickle",
    ):
        fetch_model(str(tmp_path / "pickled"), tracking_uri=uri, folder=str(tmp_path))
    pickled = fetch_model(
        str(tmp_path / "pickled"), tracking_uri=uri, folder=str(tmp_path), allow_pickle=True
    )
    loaded = load_source("pickle", str(pickled))[0]
    require_inference_mode(loaded)
    torch.testing.assert_close(loaded(x), linear(x))


def test_a_version_registered_without_an_alias_leaves_the_champion_where_it_is(
    tracker: MlflowTracker, client: MlflowClient
) -> None:
    run_id = tracker.run("holder", name="holder", tags={}, params={})
    uris = [
        tracker.model(run_id, small(name), name=f"m-{name}", input_shape=SHAPE)
        for name in ("elu", "celu")
    ]
    assert tracker.holder("held", alias="champion") is None, "there is no such model"
    assert tracker.register(uris[0], name="held", alias=None, tags={}, run_id=run_id) == "1"
    assert tracker.holder("held", alias="champion") is None, "there is no such alias"
    assert (
        tracker.register(
            uris[0], name="held", alias="champion", tags={"number": "0.5"}, run_id=run_id
        )
        == "1"
    )
    assert (
        tracker.register(uris[1], name="held", alias=None, tags={"number": "0.4"}, run_id=run_id)
        == "2"
    )
    held = tracker.holder("held", alias="champion")
    assert held == Holder(version="1", source=uris[0], tags={"number": "0.5"})
    assert client.get_model_version("held", "2").tags == {"number": "0.4"}


def test_registering_twice_yields_one_version(
    tracker: MlflowTracker, client: MlflowClient, uri: str
) -> None:
    run_id = tracker.run("champion", name="champion", tags={}, params={})
    first = tracker.model(run_id, small("silu"), name="model", input_shape=SHAPE)
    second = tracker.model(run_id, small("relu"), name="model", input_shape=SHAPE)
    for tags in ({"card": "failed"}, {"card": "passed"}):
        assert (
            tracker.register(first, name="digits", alias="champion", tags=tags, run_id=run_id)
            == "1"
        )
    assert client.get_model_version_by_alias("digits", "champion").tags == {"card": "passed"}
    assert tracker.register(second, name="digits", alias="champion", tags={}, run_id=run_id) == "2"
    assert [int(v.version) for v in client.search_model_versions("name = 'digits'")] == [2, 1]
    champion = client.get_model_version_by_alias("digits", "champion")
    assert (int(champion.version), champion.source, champion.run_id, champion.status) == (
        2,
        second,
        run_id,
        "READY",
    )
    assert Path(client.get_model_version_download_uri("digits", "1"), "MLmodel").is_file()
    assert not mlflow.is_tracking_uri_set()


def test_two_processes_create_one_fresh_database(tmp_path: Path) -> None:
    fresh = f"sqlite:///{tmp_path}/new/mlflow.db"
    both = [start(fresh), start(fresh)]
    for process in both:
        process.join(PATIENCE_SECONDS)
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(found.name for found in MlflowClient(fresh, fresh).search_experiments()) == [
        "Default",
        "e",
    ]


class Server(BaseHTTPRequestHandler):
    """Answer /health as MLflow does and refuse everything else; remember who asked."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.path.partition('?')[0]} {self.headers.get('Authorization')}")
        self.send_response(
            {"/health": 200, "/elsewhere/health": 404, "/busy/health": 503}.get(self.path, 401)
        )
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    Server.seen = []
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_healthy_server_is_accepted(address: str) -> None:
    check_tracking(f"http://{address}")


def test_another_server_or_a_sick_one_is_refused(address: str) -> None:
    for path, status in (("elsewhere", 404), ("busy", 503)):
        with pytest.raises(
            ValueError,
            match=rf"\(status {status} for /health\); start it or correct --tracking-uri",
        ):
            check_tracking(f"http://{address}/{path}")


def test_a_refused_login_is_one_line_and_moves_to_the_environment(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "old")
    with pytest.raises(
        ValueError, match=r"tracking at http://\*\*\*@127\.0\.0\.1:\d+ refused the first request"
    ) as caught:
        MlflowTracker(f"http://me:s%40cret@{address}", experiment="e", artifact_root=None)
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Server.seen[-1].endswith(" Basic bWU6c0BjcmV0")  # me:s@cret
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s@cret"


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
def test_a_silent_server_is_refused_in_time(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never answers
        port = listener.getsockname()[1] if scheme == "http" else 1
        start = time.monotonic()
        with pytest.raises(ValueError, match="gives no good answer within 1 s") as caught:
            check_tracking(f"{scheme}://me:secret@127.0.0.1:{port}/db", timeout_seconds=1)
    assert time.monotonic() - start < 60  # without a limit it would never end
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("./mlruns", "is a folder, which this MLflow refuses; use sqlite"),
        ("file:///tmp/mlruns", "is a folder"),
        ("htp://me:secret@host:5000", "unknown scheme 'htp'; use"),
        ("http://me:sec/ret@secret@host:5000", "percent-encode the login"),
        ("sqlite://", "names no file"),
        ("sqlite:////proc/nowhere/mlflow.db", "cannot be written"),
        ("sqlite:////etc/hosts/mlflow.db", "cannot be written"),
        ("sqlite:////etc/hosts", "cannot be written"),
        ("", "is a folder"),
    ],
)
def test_a_bad_uri_is_refused_without_showing_its_password(bad: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_tracking(bad)
    assert "sec" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_login_in_texts_is_masked(tracker: MlflowTracker, client: MlflowClient) -> None:
    tracker._login = "me:secret"
    shown = "postgresql://me:secret@host/db"
    run_id = tracker.run(
        "masked", name="masked", tags={"where": shown}, params={"tracking_uri": shown}
    )
    tracker.note(run_id, shown)
    run = client.get_run(run_id)
    assert "secret" not in str(run.data.params) + str(run.data.tags)
    assert run.data.params["tracking_uri"] == "postgresql://***@host/db"


def test_an_experiment_that_others_made_opens_on_its_runs_and_keeps_shared_views(
    client: MlflowClient, uri: str
) -> None:
    client.create_experiment("of others")
    client.create_experiment("of another kind", tags={"mlflow.experimentKind": "genai_development"})
    for name, kind in (
        ("of others", "custom_model_development"),
        ("of another kind", "genai_development"),
    ):
        tracker = MlflowTracker(uri, experiment=name, artifact_root=None)
        tracker.share("sat_ray-digits", {"orderByAsc": False})
        tags = client.get_experiment_by_name(name).tags
        assert tags["mlflow.experimentKind"] == kind
        assert json.loads(tags["mlflow.sharedViewState.sat_ray-digits"]) == {"orderByAsc": False}


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_store_that_was_moved_or_copied_with_its_artifacts_is_one_that_writes_where_it_lies(
    tmp_path: Path, fresh: Callable[[Path], str], way: str
) -> None:
    """MLflow keeps absolute paths: without help the copy writes into the original,
    and the moved one finds nothing.
    """
    before, after = tmp_path / "before", tmp_path / "after it"

    def opened(place: Path) -> tuple[MlflowTracker, MlflowClient]:
        uri = f"sqlite:///{place}/mlflow.db"
        return MlflowTracker(
            uri, experiment="family", artifact_root=str(place / "mlartifacts")
        ), MlflowClient(uri, uri)

    fresh(before)
    first, _ = opened(before)
    _, run_id = write(first)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    found = first.model(run_id, model, name="model", input_shape=(1, 2, 2))
    version = first.register(found, name="family", alias="champion", tags={}, run_id=run_id)
    (shutil.move if way == "moved" else shutil.copytree)(before, after)
    kept = sorted(path for path in before.rglob("*") if path.is_file() and path.parent != before)
    _artifact_repos_cache.clear()  # as in another process
    tracker, client = opened(after)
    assert write(tracker)[1] == run_id and len(runs_of(client, "family")) == 2
    run = client.get_run(run_id)
    assert Path(run.info.artifact_uri).is_relative_to(after / "mlartifacts")
    assert Path(client.download_artifacts(run_id, "tables/leaderboard.md")).read_bytes() == b"| a |"
    tracker.artifact(run_id, "new.txt", b"new")
    assert (Path(run.info.artifact_uri) / "new.txt").read_bytes() == b"new"
    assert tracker.model(run_id, model, name="model", input_shape=(1, 2, 2)) == found
    assert (
        tracker.register(found, name="family", alias="champion", tags={}, run_id=run_id) == version
    )
    with sqlite3.connect(after / "mlflow.db") as database:
        dump = "\n".join(line for line in database.iterdump() if "Default" not in line)
    assert str(before) not in dump
    assert (
        sorted(path for path in before.rglob("*") if path.is_file() and path.parent != before)
        == kept
    )


def test_artifacts_that_lie_in_another_storage_stay_there(
    tmp_path: Path, fresh: Callable[[Path], str]
) -> None:
    """Two storages with one database: the runs of the first have their artifacts in the first."""
    uri = fresh(tmp_path / "second")
    first = MlflowTracker(
        uri, experiment="family", artifact_root=str(tmp_path / "first" / "mlartifacts")
    )
    _, run_id = write(first)
    MlflowTracker(uri, experiment="family", artifact_root=str(tmp_path / "second" / "mlartifacts"))
    assert Path(MlflowClient(uri, uri).get_run(run_id).info.artifact_uri).is_relative_to(
        tmp_path / "first"
    )
