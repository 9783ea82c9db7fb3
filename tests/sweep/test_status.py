"""Where a sweep stands: counted from real records of a half-finished sweep, without Ray,
MLflow or a single byte written.
"""

import dataclasses
import hashlib
import itertools
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sweeps import ROOT, WITHOUT_RAY, environment, filled, parsed, prepare, records
from test_lease import holder

from sat_ray.data.shards.reading import image_ids
from sat_ray.evaluation.card import PASS
from sat_ray.integrations.command_line import status
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import evaluate_and_commit, rows_of
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.plan.evaluations import (
    evaluation_tasks,
    open_tasks,
    strong_tasks,
    validation_tasks,
)
from sat_ray.sweep.plan.trainings import final_tasks, trial_task
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.stage_status import PAUSE_SECONDS, seconds_left
from sat_ray.sweep.status import SweepStatus, read_status
from sat_ray.sweep.tasks import CARD, EVALUATE, TRAIN, Dataset
from sat_ray.utils.serialization import to_json

NAME = "half"
FLAGS = (
    *("digits_smoke", "--name", NAME),
    *shlex.split("--search.activations relu silu:1 --search.pairs --search.rungs 1"),
    *shlex.split("--training.epochs 1 --model.width 4"),
    *shlex.split("--evaluation.steps 4 --evaluation.step-size 16/255"),
    *shlex.split("--evaluation.images 200 --evaluation.shard-size 180"),
    *shlex.split("--evaluation.strong-steps 2 --evaluation.strong-targets 1"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a sweep that has searched, trained 2 of 4 models, validated one,
    and evaluated 1 shard of 8, but not strongly.
    """
    folder = tmp_path_factory.mktemp("status") / "runs"
    prepare(*FLAGS, "--storage", str(folder))
    config = parsed(*FLAGS, "--storage", str(folder)).config
    data, store = (
        Dataset.open(dataset_uri(config, Storage.at(folder))),
        Records(Storage.at(folder / NAME)),
    )
    assert data is not None
    configurations = list(config.search.points())
    for one in configurations:
        train_and_commit(trial_task(config, data, one).at(1), store)
    trained = [
        train_and_commit(task, store) for task in final_tasks(config, data, configurations)[:2]
    ]
    evaluate_and_commit(validation_tasks(config, data, trained[0])[0], store)
    evaluate_and_commit(evaluation_tasks(config, data, trained[0])[0], store)
    return folder


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """Return a copy of that storage which a test may change."""
    shutil.copytree(root, tmp_path / "runs")
    return tmp_path / "runs"


def digest(folder: Path) -> dict[str, tuple[str, int]]:
    """Return the hash and the time of change of everything below a folder."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in [folder, *folder.rglob("*")]
    }


def stage(found: SweepStatus, name: str) -> tuple[int, int | None, int]:
    """Return (done, planned, of another environment) of a stage."""
    return next(
        (one.done, one.planned, one.other_environment) for one in found.stages if one.name == name
    )


def test_units_best_and_cost_are_those_of_the_records(root: Path) -> None:
    found = read_status(Storage.at(root), NAME)
    assert [stage(found, name) for name in ("search", "train", "evaluate")] == [
        (2, 2, 0),
        (2, 4, 0),
        (1, 8, 0),
    ]
    assert [stage(found, name) for name in ("validate", "strong")] == [(1, 4, 0), (0, 8, 0)]
    assert found.current is not None and found.current.name == "train"
    assert found.driver is None and not found.report
    (model,) = found.unfinished
    (shard,) = (one["payload"] for one in records(root / NAME, "evaluate").values())
    assert (model.name, model.seen, model.total) == (shard["name"], shard["n"], 200)
    assert model.robust_at_most == pytest.approx(1 - (shard["n"] - shard["robust"]) / 200)
    assert f"{model.name} at most" in status.describe(found, Storage.at(root), now=0.0)
    files = {
        name: list(records(root / NAME, name).values())
        for name in ("search", "train", "validate", "evaluate")
    }
    scores = {
        one["payload"]["configuration"]["activation"]: one["payload"]["val_robust_accuracy"]
        for one in files["train"]
    }
    assert found.best is not None and found.best.models == 1
    assert found.best.val_robust_accuracy == max(scores.values()) == scores[found.best.name]
    for one in found.stages[:4]:
        cost = [
            record["payload"].get("accelerator_seconds", record["seconds"])
            for record in files[one.name]
        ]
        assert one.accelerator_seconds == pytest.approx(sum(cost))
        assert one.last_commit == max(record["created"] for record in files[one.name])
        assert (one.seconds_left is None) == one.complete
    (evaluation,) = files["evaluate"]
    assert found.stages[3].images_per_second == pytest.approx(
        evaluation["payload"]["n"] / evaluation["seconds"]
    )


def test_models_with_the_same_weights_share_their_outcomes(copy: Path) -> None:
    name = "twins"
    one_function = ("elu:1", "celu:1.0000000001")  # float32 has no number between
    given = ["--search.activations", *one_function, "--final.seeds", "0"]
    given += ["--name", name, "--storage", str(copy)]
    config = parsed(*FLAGS, *given).config
    store = Records(Storage.at(copy / name))
    store.storage.write_json("config.json", to_json(config))
    data = Dataset.open(dataset_uri(config, Storage.at(copy)))
    assert data is not None
    trained = [
        train_and_commit(task, store)
        for task in final_tasks(config, data, list(config.search.points()))
    ]
    assert len(trained) == 2 and len({record.payload["sha256"] for record in trained}) == 1
    tasks = [evaluation_tasks(config, data, record) for record in trained]
    wanted = list(open_tasks(itertools.chain(*tasks), store))
    assert wanted == tasks[0] and [one.key for one in tasks[0]] == [one.key for one in tasks[1]]
    for task in wanted:
        evaluate_and_commit(task, store)
    assert stage(read_status(Storage.at(copy), name), "evaluate") == (len(wanted), len(wanted), 0)
    rows = torch.cat([rows_of(task) for task in wanted])
    ids = image_ids(Storage(data.uri), "test")[rows].numpy()
    paths = [merge_outcomes(store.each(EVALUATE), ids, store, name=one) for one in ("elu", "celu")]
    assert store.storage.read(paths[0]) == store.storage.read(paths[1])


def test_the_command_writes_nothing_and_sees_the_driver_while_it_lives(copy: Path) -> None:
    driver = holder(copy / NAME)
    try:
        before = digest(copy)
        script = str(ROOT / "pipelines" / "status.py")
        command = [sys.executable, "-c", WITHOUT_RAY, script, NAME, "--storage", str(copy)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert digest(copy) == before
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert f"driver at work (process {driver.pid} on" in done.stdout
    assert "2/2" in done.stdout and "2/4" in done.stdout and "1/8" in done.stdout
    after = read_status(Storage.at(copy), NAME)
    assert after.driver is not None and (after.driver.pid, after.driver.alive) == (
        driver.pid,
        False,
    )


def test_the_next_command_is_one_that_goes_on_with_this_sweep(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAT_RAY_STORAGE", raising=False)
    found = read_status(Storage.at(root), NAME)
    words = shlex.split(status.command_of(found, Storage.at(root)))
    assert words[:2] == ["python", "pipelines/sweep.py"]
    command = parsed(*words[2:])
    assert command.config == found.config
    assert command.storage == Storage.at(root / NAME)


def test_a_finished_sweep_names_its_report(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_status(Storage.at(copy), NAME).config
    data, store = (
        Dataset.open(dataset_uri(config, Storage.at(copy))),
        Records(Storage.at(copy / NAME)),
    )
    assert data is not None
    for training in final_tasks(config, data, list(config.search.points())):
        model = train_and_commit(training, store)
        for task in (*strong_tasks(config, data, model), *validation_tasks(config, data, model)):
            evaluate_and_commit(task, store)
    assert stage(read_status(Storage.at(copy), NAME), "card") == (
        0,
        min(config.card.candidates, 2),
        0,
    )
    store.commit(
        CARD,
        "0" * 32,
        **filled(CARD, {"name": "silu-s0", "card": {"verdict": PASS}}),
        seconds=1.0,
    )
    found = read_status(Storage.at(copy), NAME)
    assert stage(found, "card") == (1, 1, 0)  # the first that passes ends the stage
    assert found.report == ""  # every unit is there, the report is not
    for name in ("leaderboard.json", "report.html"):
        (copy / NAME / name).write_text("{}")
    assert asked(monkeypatch, NAME, "--storage", str(copy)) == 0
    assert f"done; the report: {copy / NAME / 'report.html'}" in capsys.readouterr().out
    assert asked(monkeypatch, "--storage", str(copy), "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["done"] and all(stage["complete"] for stage in one["stages"]) and one["name"] == NAME


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command in this process and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["status.py", *words])
    return status.main(about="")


def test_results_of_another_numerical_environment_are_not_counted_as_done(copy: Path) -> None:
    older = min(
        (copy / NAME / "state" / "train").glob("*.json"),
        key=lambda path: json.loads(path.read_text())["created"],
    )
    record = json.loads(older.read_text())
    record["inputs"]["environment"]["torch"] = "1.0"
    older.write_text(json.dumps(sealed(record)))
    found = read_status(Storage.at(copy), NAME)
    assert stage(found, "train") == (1, 4, 1)
    assert stage(found, "evaluate") == (0, 8, 1)  # it attacked the weights of that training


def test_an_asynchronous_search_has_a_bound_instead_of_a_plan(tmp_path: Path) -> None:
    asha = shlex.split("--search.method asha --search.samples 7 --search.rungs 1 3")
    prepare(*FLAGS, "--storage", str(tmp_path), *asha)
    (first, *_) = read_status(Storage.at(tmp_path), NAME).stages
    assert (first.name, first.planned, first.at_most) == ("search", 14, True)


@pytest.mark.parametrize("pause", [0.0, 3600.0])
def test_the_time_left_counts_parallel_work_once_and_pauses_not_at_all(
    root: Path, pause: float
) -> None:
    path = next((root / NAME / "state" / "train").glob("*.json"))
    one = Records(Storage.at(root / NAME)).find(TRAIN, path.stem)
    assert one is not None
    # two workers, 10 s a unit, standing still in between
    ends = [(10.0, 0.0)] * 2 + [(20.0, pause)] * 2
    done = [dataclasses.replace(one, created=end + waited, seconds=10.0) for end, waited in ends]
    assert pause == 0 or pause > PAUSE_SECONDS
    assert seconds_left(done, left=6) == pytest.approx(30.0)
    assert seconds_left(done, left=0) is None and seconds_left([], left=6) is None


def test_what_is_no_sweep_is_refused_in_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "other").mkdir()
    damaged = next((copy / NAME / "state" / "train").glob("*.json"))
    cases = {
        ("other",): "is not a sweep: it has no config.json",
        ("hlaf",): "did you mean half?",
        (NAME, "--storrage", "x"): "did you mean --storage?",
        (NAME, "--storage", str(copy / "nowhere")): "does not exist",
        (NAME, "--storage", "gs://bucket/x"): "must be a local folder or s3://bucket/prefix",
        (NAME, "--json"): f"record {damaged} is no JSON",
    }
    before = None
    for words, wanted in cases.items():
        if words == (NAME, "--json"):
            damaged.write_text("{")
        before = digest(copy)
        place = () if "--storage" in words else ("--storage", str(copy))
        assert asked(monkeypatch, *words, *place) == 2
        text = capsys.readouterr()
        assert (
            text.err.startswith("error: ")
            and len(text.err.splitlines()) == 1
            and wanted in text.err
            and not text.out
        )
        assert digest(copy) == before


def test_a_storage_without_sweeps_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, "--storage", str(tmp_path)) == 0
    assert "no sweep in" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
