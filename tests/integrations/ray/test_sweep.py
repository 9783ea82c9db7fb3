"""The whole pipeline for real: private Ray, Ray Tune, two Ray Train workers, evaluation tasks,
MLflow on SQLite.
"""

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import mlflow
import nbformat
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from nbclient import NotebookClient
from sweeps import (
    ROOT,
    environment,
    leaderboard,
    numbers,
    parsed,
    pipeline,
    prepare,
    records,
    start,
)
from waiting import until

from sat_ray.checkpoint import load_model
from sat_ray.data.shards.reading import read_split
from sat_ray.evaluation.outcomes import OUTCOME_SCHEMA, robust_image_ids
from sat_ray.integrations.command_line.checks.claims import sweep_of
from sat_ray.integrations.mlflow import MlflowTracker
from sat_ray.integrations.mlflow.projection.whole import Projection
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.tasks import CARD

RECIPE = "digits_smoke"
REGISTERED = "digits-small_resnet-linf-16-255"
SWEEP = (RECIPE, "--name", RECIPE, "--final.seeds", "0")  # one seed is enough to see every stage
CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_FLASK_SERVER_SECRET_KEY", "PGPASSWORD", "RAY_AUTH_TOKEN"),
)
PLANTED = "planted-4f1d0c"
ROW_KEYS = {
    "model",
    "activation",
    "alpha",
    "attacker_activation",
    "attacker_alpha",
    "seed",
    "val_robust_accuracy",
    "clean_accuracy",
    "robust_accuracy",
    "robust_accuracy_interval",
    "strong_robust_accuracy",
    "strong_robust_accuracy_interval",
    "n",
    "checkpoint",
    "outcomes",
    "mlflow_run_id",
    "accelerator_seconds",
    "train_images_per_second",
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the smoke recipe once, undisturbed."""
    root = tmp_path_factory.mktemp("storage")
    done = pipeline(
        "sweep",
        *SWEEP,
        "--storage",
        str(root),
        env=environment(**dict.fromkeys(CREDENTIALS, PLANTED)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "printed").write_text(done.stdout + done.stderr)
    return root


@pytest.fixture
def sweep(storage: Path) -> Path:
    """Return the finished sweep's folder."""
    return storage / RECIPE


@pytest.fixture
def client(storage: Path) -> MlflowClient:
    """Read what the sweep wrote to MLflow."""
    uri = f"sqlite:///{storage}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    return MlflowClient(uri, uri)


def test_a_sweep_leaves_every_file_of_the_contract(sweep: Path) -> None:
    reports = ("leaderboard.json", "leaderboard.md", "report.html", "report.tex")
    for name in ("config.json", "config.yaml", *reports):
        assert (sweep / name).stat().st_size > 100, name
    figures = {path.name for path in (sweep / "figures").glob("*.png")}
    vectors = {path.name for path in (sweep / "figures").glob("*.pdf")}
    assert {name.removesuffix(".png") for name in figures} == {
        name.removesuffix(".pdf") for name in vectors
    }
    assert figures >= {
        "clean_against_robust.png",
        "table1.png",
        "training_curves.png",
        "adversarial_examples.png",
        "alpha_response.png",
    }
    assert figures >= {"robustness_card.png", "robust_against_curvature.png"}
    board = leaderboard(sweep)
    assert set(board) >= {"sweep", "dataset", "threat_model", "attack", "strong_attack", "rows"}
    assert set(board["threat_model"]) == {"norm", "epsilon"}
    assert set(board["attack"]) == {"name", "steps", "step_size", "restarts"}
    assert board["strong_attack"] == {
        "name": "apgd-ce-20 + apgd-t-dlr-20",
        "after": "pgd-100",
        "steps": 20,
        "targets": 3,
        "gradient": "float32",
    }
    assert len(board["rows"]) == 3
    printed = " ".join((sweep.parent / "printed").read_text().split())
    assert f"{board['headline']['sentence']}." in printed
    assert all(set(row) >= ROW_KEYS for row in board["rows"])


def test_the_notebook_reads_the_sweep_and_draws_its_figure(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEP", str(sweep))
    folder = ROOT / "docs" / "example"
    notebook = nbformat.read(folder / "read_a_sweep.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    where = {"metadata": {"path": str(folder)}}
    done = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    shown = [one for cell in done.cells for one in cell.get("outputs", [])]
    assert shown[0]["text"].strip() == leaderboard(sweep)["headline"]["sentence"]
    assert [one for one in shown if "image/png" in one.get("data", {})] == [shown[-1]]


def test_a_row_is_what_its_outcomes_say(sweep: Path) -> None:
    for row in leaderboard(sweep)["rows"]:
        table = pq.read_table(row["outcomes"])
        assert table.schema.equals(OUTCOME_SCHEMA)
        frame = table.to_pandas()
        broken = set(frame.image_id[~frame.robust])
        ids = set(frame.image_id)
        assert len(ids) == row["n"] == 300
        assert row["robust_accuracy"] == pytest.approx(1 - len(broken) / 300)
        low, high = row["robust_accuracy_interval"]
        assert low <= row["robust_accuracy"] <= high
        smooth = {name for name in set(frame.attack) if "@" in name}
        assert bool(smooth) == (
            "relu_smooth_backward" in (row["activation"], row["attacker_activation"])
        )


def test_the_strong_number_is_what_its_outcomes_leave_of_pgd(
    sweep: Path, client: MlflowClient
) -> None:
    for row in leaderboard(sweep)["rows"]:
        survivors = robust_image_ids(pq.read_table(row["outcomes"]))
        strong = pq.read_table(row["strong_outcomes"])
        assert set(strong["image_id"].to_pylist()) == survivors
        assert row["strong_robust_accuracy"] == pytest.approx(len(robust_image_ids(strong)) / 300)
        assert row["strong_robust_accuracy"] <= row["robust_accuracy"]
        metrics = client.get_run(row["mlflow_run_id"]).data.metrics
        assert metrics["eval/strong_robust_accuracy"] == pytest.approx(
            row["strong_robust_accuracy"]
        )
        low, high = (metrics[f"eval/strong_robust_accuracy_{end}"] for end in ("low", "high"))
        assert [low, high] == pytest.approx(row["strong_robust_accuracy_interval"])
        gap = row["robust_accuracy"] - row["strong_robust_accuracy"]
        assert metrics["eval/verdict_gap"] == pytest.approx(gap)


def test_a_checkpoint_of_the_leaderboard_scores_what_the_leaderboard_says(
    storage: Path, sweep: Path
) -> None:
    whole = read_split(Storage(str(next((storage / "data").iterdir()))), "test")
    for row in leaderboard(sweep)["rows"][:2]:
        judged = torch.tensor(pq.read_table(row["outcomes"])["image_id"].to_pylist())
        test = whole.take(torch.isin(whole.image_ids, judged))
        model = load_model(row["checkpoint"])
        assert not model.training
        with torch.no_grad():
            right = (
                (model(test.images.float() / 255).argmax(dim=1) == test.labels)
                .float()
                .mean()
                .item()
            )
        assert right == pytest.approx(
            row["clean_accuracy"], abs=1.5 / 300
        )  # one image may change sides with the batch shape


def test_the_champion_is_chosen_by_validation(sweep: Path) -> None:
    board = leaderboard(sweep)
    means: dict[str, list[float]] = {}
    for row in board["rows"]:
        means.setdefault(row["configuration"], []).append(row["val_strong_robust_accuracy"])
    best = max(float(np.mean(values)) for values in means.values())
    assert float(np.mean(means[board["champion"]["configuration"]])) == pytest.approx(best)


def test_mlflow_holds_a_finished_tree_of_sweep_configurations_seeds_and_trials(
    client: MlflowClient, sweep: Path
) -> None:
    experiment = client.get_experiment_by_name(RECIPE)
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    kinds = [run.data.tags["sat_ray.kind"] for run in runs]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "sweep": 1,
        "search": 1,
        "configuration": 3,
        "trial": 4,
        "finalist": 3,
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = next(run for run in runs if run.data.tags["sat_ray.kind"] == "sweep")
    assert parent.data.params["training.epochs"] == "3"
    by_id = {run.info.run_id: run for run in runs}
    above = {
        "search": "sweep",
        "configuration": "sweep",
        "trial": "search",
        "finalist": "configuration",
    }
    for run in runs:
        if run is not parent:
            assert (
                by_id[run.data.tags["mlflow.parentRunId"]].data.tags["sat_ray.kind"]
                == above[run.data.tags["sat_ray.kind"]]
            )
    for row in leaderboard(sweep)["rows"]:
        metrics = by_id[row["mlflow_run_id"]].data.metrics
        assert metrics["eval/robust_accuracy"] == pytest.approx(row["robust_accuracy"])
        names = {
            "train/loss",
            "train/adversarial_accuracy",
            "val/clean_accuracy",
            "val/robust_accuracy",
            "throughput/images_per_second",
        }
        names |= {
            "eval/clean_accuracy",
            "eval/robust_accuracy_low",
            "eval/robust_accuracy_high",
            "cost/accelerator_seconds",
        }
        assert names <= set(metrics)
        history = client.get_metric_history(row["mlflow_run_id"], "train/loss")
        assert [point.step for point in history] == [1, 2, 3]
        assert {item.path for item in client.list_artifacts(row["mlflow_run_id"])} >= {
            "outcomes.parquet",
            "config.json",
        }
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    reports = {"leaderboard.json", "leaderboard.md", "report.html", "report.tex"}
    assert files >= {"config.json", "config.yaml", "figures", *reports}


def test_the_champion_in_the_registry_computes_what_its_checkpoint_computes(
    client: MlflowClient, sweep: Path
) -> None:
    version = client.get_model_version_by_alias(REGISTERED, "champion")
    assert version.tags["sat_ray.robustness_card"] == "PASS"
    champion = leaderboard(sweep)["champion"]["row"]
    assert version.tags["sat_ray.robust_accuracy"] == f"{champion['strong_robust_accuracy']:.4f}"
    assert version.tags["sat_ray.robust_accuracy_attack"] == "pgd-100 + apgd-ce-20 + apgd-t-dlr-20"
    logged = mlflow.pytorch.load_model(f"models:/{REGISTERED}@champion")
    model = load_model(champion["checkpoint"])
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(logged(x), model(x), atol=1e-6)


def test_the_champion_has_a_card_and_its_files_say_so(client: MlflowClient, sweep: Path) -> None:
    board = leaderboard(sweep)
    (card,) = records(sweep, "card").values()
    description = json.loads(Path(board["champion"]["row"]["checkpoint"], "model.json").read_text())
    assert card["payload"]["weights"] == card["inputs"]["weights"] == description["sha256"]
    assert board["champion"]["robustness_card"] == card["payload"]["card"]["verdict"] == "PASS"
    assert [row["robustness_card"] for row in board["rows"]].count("PASS") == 1
    written = json.loads((sweep / "cards" / f"{card['payload']['name']}.json").read_text())
    assert written == sealed(card["payload"]["card"])
    run = client.get_run(board["champion"]["row"]["mlflow_run_id"])
    assert run.data.tags["sat_ray.robustness_card"] == "PASS"
    assert "robustness_card.json" in {item.path for item in client.list_artifacts(run.info.run_id)}
    page = (sweep / "report.html").read_text()
    assert all(check["name"] in page for check in card["payload"]["card"]["checks"])


def test_a_flagged_model_is_withheld_unless_somebody_says_why(
    storage: Path, sweep: Path, tmp_path: Path
) -> None:
    """The finished sweep again, with a card that says FLAG, into an MLflow of its own."""
    command = parsed(*SWEEP, "--storage", str(storage))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    projection = Projection(
        sweep_of(command),
        MlflowTracker(uri, experiment=RECIPE, artifact_root=str(tmp_path / "artifacts")),
    )
    (record,) = Records(Storage(str(sweep))).all(CARD)
    flagged = record.payload | {
        "card": record.payload["card"]
        | {"verdict": "FLAG", "reasons": ["the gradient is not zero: 3 images"]}
    }
    cards, board = [dataclasses.replace(record, payload=flagged)], leaderboard(sweep)
    client = MlflowClient(uri, uri)
    said = projection.register(board, cards, override="")
    assert said.startswith("no champion") and "3 images" in said and "--accept-flagged" in said
    assert client.search_registered_models() == []
    said = projection.register(board, cards, override="the images are synthetic")
    assert "FLAG, accepted because: the images are synthetic" in said
    tags = client.get_model_version_by_alias(REGISTERED, "champion").tags
    assert tags["sat_ray.robustness_card"] == "FLAG"
    assert tags["sat_ray.configuration"] == board["champion"]["configuration"]
    assert tags["sat_ray.flag_accepted_because"] == "the images are synthetic"
    assert "3 images" in tags["sat_ray.flagged_because"]


def test_a_champion_keeps_its_alias_unless_it_is_beaten_on_the_same_data(
    storage: Path, sweep: Path, tmp_path: Path
) -> None:
    """The finished sweep, into an MLflow of its own where another version is champion."""
    command = parsed(*SWEEP, "--storage", str(storage))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker(uri, experiment=RECIPE, artifact_root=str(tmp_path / "artifacts"))
    projection = Projection(sweep_of(command), tracker)
    cards, board = Records(Storage(str(sweep))).all(CARD), leaderboard(sweep)
    other = next(
        row for row in board["rows"] if row["checkpoint"] != board["champion"]["row"]["checkpoint"]
    )
    run = tracker.run("other", name="other", tags={}, params={})
    model = tracker.model(run, load_model(other["checkpoint"]), name="model", input_shape=(1, 8, 8))

    def champion_with(**tags: str) -> str:
        tracker.register(model, name=REGISTERED, alias="champion", tags=present | tags, run_id=run)
        said: str = projection.register(board, cards, override="")
        return said

    assert "load it as models:/" in projection.register(board, cards, override="")
    client = MlflowClient(uri, uri)
    present = client.get_model_version_by_alias(REGISTERED, "champion").tags
    ours = float(present["sat_ray.val_robust_accuracy"])
    assert ours == pytest.approx(board["champion"]["val_strong_robust_accuracy"], abs=1e-6)
    for tags, reason in (
        ({"sat_ray.val_robust_accuracy": f"{ours:.6f}"}, "robust accuracy on validation"),
        ({"sat_ray.val_robust_accuracy": "0.01", "sat_ray.dataset": "other"}, "another data,"),
        (
            {"sat_ray.val_robust_accuracy": "0.01", "sat_ray.val_attack": "pgd-10"},
            "another validation attack",
        ),
    ):
        said = champion_with(**tags)
        assert said.startswith("registered without the alias champion") and reason in said
        assert client.get_model_version_by_alias(REGISTERED, "champion").source == model
    champion_with(**{"sat_ray.val_robust_accuracy": "0.01"})
    assert client.get_model_version_by_alias(REGISTERED, "champion").source != model


def test_a_finished_sweep_started_again_computes_nothing_and_changes_no_number(
    storage: Path, sweep: Path
) -> None:
    before = {
        stage: records(sweep, stage)
        for stage in ("search", "train", "validate", "card", "evaluate", "strong")
    }
    rows = numbers(leaderboard(sweep))
    done = pipeline("sweep", *SWEEP, "--storage", str(storage))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stage: records(sweep, stage) for stage in before} == before
    assert numbers(leaderboard(sweep)) == rows
    assert done.stdout.count("0 computed") == 4


@pytest.mark.fault  # a minute more
def test_a_copied_sweep_goes_on_in_its_own_folder_also_after_its_champions_record_was_moved_away(
    storage: Path, sweep: Path, tmp_path: Path
) -> None:
    """As a message advises: the model is trained again to the same weights, keeps its shards and
    its card, and no run is doubled.
    """
    copy = tmp_path / "copy"
    shutil.copytree(storage, copy)
    before = {path: path.stat().st_mtime_ns for path in storage.rglob("*")}
    champion = leaderboard(sweep)["champion"]["row"]
    description = json.loads(Path(champion["checkpoint"], "model.json").read_text())
    (key,) = [
        key
        for key, one in records(sweep, "train").items()
        if one["payload"]["sha256"] == description["sha256"]
    ]
    (copy / RECIPE / "state" / "train" / f"{key}.json").rename(tmp_path / "moved-away.json")
    shard = max((copy / RECIPE / "state" / "evaluate").glob("*.json"))
    shard.unlink()
    done = pipeline("sweep", *SWEEP, "--storage", str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in storage.rglob("*")} == before, (
        "the copy wrote into the original"
    )
    again = leaderboard(copy / RECIPE)
    assert numbers(again) == numbers(leaderboard(sweep))
    assert again["champion"]["row"]["robustness_card"] == "PASS"
    assert all(
        row[place].startswith(f"{copy}/")
        for row in again["rows"]
        for place in ("checkpoint", "outcomes")
    )
    theirs, ours = (MlflowClient(f"sqlite:///{place}/mlflow.db") for place in (storage, copy))
    (family,) = [one.experiment_id for one in ours.search_experiments() if one.name == RECIPE]
    assert {run.info.run_id for run in ours.search_runs([family])} == {
        run.info.run_id for run in theirs.search_runs([family])
    }
    assert all(run.info.artifact_uri.startswith(f"{copy}/") for run in ours.search_runs([family]))


def test_a_sweep_killed_in_the_middle_ends_with_the_numbers_of_an_undisturbed_one(
    tmp_path: Path, sweep: Path
) -> None:
    command = ("sweep", *SWEEP, "--storage", str(tmp_path))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    for stage in ("search", "train"):
        driver = start(*command, **pipes, start_new_session=True)
        until(
            lambda driver=driver, stage=stage: (
                records(tmp_path / RECIPE, stage) or driver.poll() is not None
            ),
            what=f"a record of {stage}",
        )
        assert driver.poll() is None, driver.communicate()[0].decode()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    committed = {stage: records(tmp_path / RECIPE, stage) for stage in ("search", "train")}
    done = pipeline(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage, earlier in committed.items():
        now = records(tmp_path / RECIPE, stage)
        assert {key: now[key] for key in earlier} == earlier, (
            "a committed record was computed again"
        )
    assert numbers(leaderboard(tmp_path / RECIPE)) == numbers(leaderboard(sweep))


@pytest.mark.parametrize("method", ["asha", pytest.param("optuna", marks=pytest.mark.fault)])
def test_asynchronous_search_commits_its_trials_and_replays_them(
    tmp_path: Path, method: str
) -> None:
    asked = shlex.split(f"--search.method {method} --search.samples 5 --name {method}")
    arguments = [RECIPE, "--storage", str(tmp_path), *asked]
    prepare(*arguments)
    done = pipeline("search", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    first = records(tmp_path / method, "search")
    assert len({record["payload"]["name"] for record in first.values()}) >= 3
    again = pipeline("search", *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    second = records(tmp_path / method, "search")
    assert {key: second[key] for key in first} == first


def test_no_credential_of_the_environment_is_in_anything_that_a_sweep_leaves_or_prints(
    storage: Path,
) -> None:
    left = [path for path in storage.rglob("*") if path.is_file()]
    names = {path.name for path in left}
    assert {
        "config.json",
        "mlflow.db",
        "report.html",
        "printed",
        "leaderboard.json",
    } <= names and len(left) > 50
    assert [str(path) for path in left if PLANTED.encode() in path.read_bytes()] == []
    assert (
        b"digits_smoke" in (storage / "mlflow.db").read_bytes()
    )  # what a tag says can be found in there
