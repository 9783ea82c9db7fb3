"""The command line: precedence, names, places, and one line for every mistake."""

import dataclasses
import errno
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from sweeps import Ended, pipeline, pipelines

from sat_ray.activations.table import activation_table
from sat_ray.integrations.command_line.checks.claims import claim_folder
from sat_ray.integrations.command_line.dry_run import plan
from sat_ray.integrations.command_line.option_values import UsageError
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.records.lease import driver_lease
from sat_ray.sweep.search.search_space import groups
from sat_ray.utils.serialization import to_json

REACH_THE_DRIVER = (
    "storage under a file",
    "another config",
    "config without JSON",
    "config of another shape",
    "second driver",
)


BAD: dict[str, tuple[list[str], str]] = {
    "recipe": (["digist"], "did you mean digits"),
    "field": (["--training.epoch", "3"], "did you mean --training.epochs"),
    "renamed": (["--evaluation.lanes", "64"], "--evaluation.lanes is now --evaluation.slots"),
    "removed value": (
        ["--evaluation.gradient", "fp16-compiled"],
        "got 'fp16-compiled'; use fp16, fp16-compiled was removed",
    ),
    "option": (["--storrage", "x"], "did you mean --storage"),
    "activation": (["--search.activations", "sillu"], "did you mean silu"),
    "schedule": (["--training.schedule", "lineer"], "did you mean linear"),
    "a name without GPUs": (
        ["--resources.accelerator", "H200"],
        "got 'H200' with gpus_per_trial 0, gpus_per_worker 0",
    ),
    "GPUs for one stage": (
        ["--resources.gpus-per-worker", "1"],
        "must be the GPUs' name (H200), with GPUs for all three stages, or empty without GPUs",
    ),
    "norm": (["--threat-model.norm", "l7"], "threat_model.norm must be linf or l2"),
    "epsilon in 255ths": (["--threat-model.epsilon", "8"], "did you mean 8/255"),
    "no number": (["--training.epochs", "many"], "many"),
    "no value": (["--training.epochs"], "--training.epochs"),
    "choice": (["--on-code-change", "maybe"], "refuse"),
    "surplus word": (["digits", "digits_smoke"], "digits_smoke"),
    "sweep name": (["--name", "../else"], "name must be up to 64 letters"),
    "S3 without tracking": (
        ["--storage", "s3://bucket/x"],
        "give --tracking-uri or MLFLOW_TRACKING_URI",
    ),
    "scheme": (["--storage", "gs://bucket/x"], "must be a local folder or s3://bucket/prefix"),
    "storage under a file": (["--storage", "a-file/x"], "choose a writable folder with --storage"),
    "another config": (
        ["--storage", "claimed", "--name", "taken"],
        "holds a sweep with another config; choose another --name",
    ),
    "config without JSON": (
        ["--storage", "claimed", "--name", "cut"],
        "claimed/cut/config.json is no JSON",
    ),
    "config of another shape": (
        ["--storage", "claimed", "--name", "null"],
        "claimed/null/config.json must hold a JSON object, got a NoneType",
    ),
    "second driver": (["--storage", "held"], "another driver"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Run every bad command, and --help, in processes of their own."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "a-file").write_text("in the way")
    Storage.at(folder / "claimed" / "taken").write_json(
        "config.json", sealed(to_json(RECIPES["digits_smoke"]()))
    )
    Storage.at(folder / "claimed" / "cut").write("config.json", b'{"recipe": "dig')
    Storage.at(folder / "claimed" / "null").write_json("config.json", None)
    commands = {
        name: argv if name in REACH_THE_DRIVER else [*argv, "--dry-run"]
        for name, (argv, _) in BAD.items()
    }
    commands |= {"help": ["--help"], "help of a recipe": ["digits_smoke", "--help"]}
    with driver_lease(Storage.at(folder / "held" / "digits")):
        # with this address a mistake that is not refused starts no sweep
        results = pipelines(
            [("sweep", words) for words in commands.values()],
            folder,
            imported="sat_ray.integrations.command_line.driver",
            COLUMNS="200",
            RAY_ADDRESS="127.0.0.1:1",
        )
    assert (folder / "a-file").read_text() == "in the way"
    assert [
        path.name for path in (folder / "claimed" / "taken").iterdir() if path.name != "state"
    ] == ["config.json"]
    return dict(zip(commands, results, strict=True))


@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_ends_with_one_line_that_says_what_to_do(
    mistake: str, answers: dict[str, Ended]
) -> None:
    assert answers[mistake].status == 2
    lines = answers[mistake].err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert BAD[mistake][1] in lines[0]


def test_help_exits_with_0_and_explains_fields_with_their_defaults(
    answers: dict[str, Ended],
) -> None:
    assert (answers["help"].status, answers["help"].err) == (0, "")
    words = " ".join(answers["help"].out.replace("│", " ").split())
    for wanted in (
        "Recipes: digits, digits_smoke",
        "--training.learning-rate",
        "Length of one step, in [0, 1] pixels",
        "(default: 0.2)",
        "Most test images in one evaluation task",
        "may be written as k/255",
        "Folder or s3://bucket/prefix",
        "MLflow server or database",
        "Name of the sweep",
        "touches nothing",
    ):
        assert wanted in words, wanted
    found = answers["help of a recipe"]
    assert found.status == 0
    assert "values below are those of digits_smoke" in " ".join(found.out.split())


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("name", ["sweep", "compare"])  # by rich and by argparse
def test_a_command_whose_output_nobody_reads_ends_quietly(name: str, buffered: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    unbuffered = {} if buffered else {"PYTHONUNBUFFERED": "1"}
    others = {key: one for key, one in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / f"{name}.py"), "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=others | unbuffered,
        timeout=300,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) in ((141, ""), (1, ""))  # 1 where rich writes


def test_a_full_disk_below_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT / "pipelines" / "status.py"), "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_a_full_disk_below_the_storage_is_named_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/digits/report.html")

    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_status(fail) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert capsys.readouterr().err == (
        "error: no room is left for /runs/digits/report.html (No space left on device); make room "
        "on that disk and give the same command again: it goes on from what is committed\n"
    )


def test_help_shows_curvature_beside_every_alpha_that_a_search_tries(
    answers: dict[str, Ended],
) -> None:
    shown = {" ".join(line.split()) for line in answers["help"].out.splitlines()}
    assert {" ".join(line.split()) for line in activation_table().splitlines()} <= shown
    assert "- silu alpha 0.25 1 4 16 64; curvature 0.125 0.5 2 8 32" in shown


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path) -> None:
    argv = ["--dry-run", "--training.epochs", "7", "--storage", "store"]
    done = pipeline("sweep", *argv, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    recipe = RECIPES["digits"]()
    rungs = ", ".join(map(str, recipe.search.rungs))
    points = recipe.search.points()
    seeds = len(recipe.final.seeds)
    finalists = len(groups(points))
    models = finalists * seeds
    assert {
        "training.epochs 7",
        "threat_model.epsilon 24/255",
        "evaluation.step_size 2/255",
        "world size 2 workers",
        "global batch 64 images, 32 per worker",
        "learning rate 0.2 at the peak, linear, 2 epochs of warm-up",
        "optimizer SGD, Nesterov momentum 0.9, weight decay 0.0005",
        "update cross-entropy of adversarial images",
        "epsilon 24/255 (linf)",
        "training attack PGD-3, step 12/255",
        (
            f"search trials {len(points)} configurations, {planned_trials(recipe)} trainings "
            "(grid, "
            f"rungs at {rungs} epochs)"
        ),
        "search space, relu curvature infinite",
        f"models for the leaderboard {finalists} configurations x {seeds} seeds = {models}",
        f"estimated passes, training {models * 7 * 718 * 4 / 1e6:.2f} million images",
        f"tracking sqlite:///{tmp_path}/store/mlflow.db",
    } <= lines


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        (
            {"optimizer": "adamw", "weight_decay": 0.05, "layer_decay": 0.75},
            {
                "optimizer": "AdamW, betas 0.9 and 0.999, decoupled weight decay 0.05, "
                "learning rate times 0.75 from each layer to the one before"
            },
        ),
        (
            {"objective": "mart", "awp_gamma": 0.005, "awp_start": 0.25, "label_smoothing": 0.1},
            {
                "update": "MART, lambda 5, label smoothing 0.1, "
                "weights perturbed by AWP, gamma 0.005 after 25% of the epochs"
            },
        ),
        (
            {"attack_label_smoothing": 0.2},
            {"training attack": "PGD-3, step 12/255, label smoothing 0.2"},
        ),
    ],
)
def test_a_dry_run_describes_the_training_method(
    changes: dict[str, Any], shown: dict[str, str]
) -> None:
    recipe = RECIPES["digits"]()
    training = dataclasses.replace(recipe.training, **changes)
    found = plan(dataclasses.replace(recipe, training=training))
    assert {name: found[name] for name in shown} == shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistake_is_one_sentence_whatever_frame_the_parser_draws(
    encoding: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UsageError) as error:
        command("--resources.gpus-per-trial", "-1")
    assert str(error.value) == "resources.gpus_per_trial must be a number from 0 to 65536, got -1"


def test_the_recipe_is_no_option_and_the_short_form_of_help_is_one(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="unknown option --recipe"):
        command("--recipe", "x")
    with pytest.raises(SystemExit) as end:
        command("digits_smoke", "-h")
    assert end.value.code == 0 and "--training.epochs" in capsys.readouterr().out


def test_the_command_line_beats_the_recipe_and_the_recipe_beats_the_default(command: Any) -> None:
    assert command().config == RECIPES["digits"]()
    config = command("digits_smoke", "--training.learning-rate", "0.05").config
    assert (config.training.learning_rate, config.training.epochs, config.training.momentum) == (
        0.05,
        3,
        0.9,
    )
    assert config.recipe == "digits_smoke"


@pytest.mark.parametrize(
    "spelling",
    [
        "--threat-model.epsilon=0.5",
        "--threat_model.epsilon 0.5",
        "--threat-model.epsilon 127.5/255",
        "--threat_model.epsilon=127.5/255",
    ],
)
def test_a_field_may_be_spelled_in_every_usual_way(command: Any, spelling: str) -> None:
    assert command(*spelling.split()).config.threat_model.epsilon == 0.5


def test_lengths_may_be_written_as_k_over_255(command: Any) -> None:
    config = command(
        "--threat-model.epsilon",
        "16/255",
        "--evaluation.step-size",
        "2/255",
        "--training.attack-step-size",
        "16/255",
    ).config
    assert (
        config.threat_model.epsilon,
        config.evaluation.step_size,
        config.training.attack_step_size,
    ) == (16 / 255, 2 / 255, 16 / 255)


@pytest.mark.parametrize(
    "words", [["--storage", "2024/10"], ["--storage=2024/10"]], ids=["space", "equals"]
)
def test_a_folder_that_looks_like_a_fraction_stays_a_folder(
    command: Any, words: list[str], tmp_path: Path
) -> None:
    assert command(*words, "--training.learning-rate", "1/10").root.uri == str(tmp_path / "2024/10")
    assert command(*words, "--data.path", "3/4").config.data.path == "3/4"


def test_lists_and_switches_are_read(command: Any) -> None:
    config = command(
        "--search.activations",
        "silu",
        "elu:0.5,2",
        "--final.seeds",
        "5",
        "--training.no-attack-random-start",
    ).config
    assert (config.search.activations, config.final.seeds, config.training.attack_random_start) == (
        ("silu", "elu:0.5,2"),
        (5,),
        False,
    )
    assert command("--evaluation.final-iterate").config.evaluation.final_iterate is True


def test_a_sweep_is_named_by_its_recipe_and_a_short_hash_of_what_was_changed(command: Any) -> None:
    assert (
        command().name
        == command("--training.epochs", str(RECIPES["digits"]().training.epochs)).name
        == "digits"
    )
    assert command("digits_smoke").name == "digits_smoke"
    name = command("--training.epochs", "7").name
    assert name == "digits-" + name[-8:] and set(name[-8:]) <= set("0123456789abcdef")
    assert (
        name
        == command("--training.epochs=7", "--dry-run", "--storage", "s").name
        != command("--training.epochs", "8").name
    )
    both = ["--training.epochs", "7"], ["--final.seeds", "0"]
    assert command(*both[0], *both[1]).name == command(*both[1], *both[0]).name
    assert name == "digits-779d7fac"  # sweeps on disk are found by this name: it must not move


def test_resources_do_not_change_the_name(command: Any) -> None:
    assert (
        command("--resources.train-workers", "1", "--resources.cpus-per-trial", "2").name
        == "digits"
    )


TAKEN = ("data", "Data", "mlflow.db", "mlflow.db.lock", "mlflow.db-wal", "MLflow.db", "mlartifacts")
HOSTILE = ("..", ".hidden", "a/b", "a b", "-x", "x" * 65, "a\n", "ä", "$(x)")


@pytest.mark.parametrize("name", [*TAKEN, *HOSTILE])
def test_names_that_are_taken_or_hostile_are_refused(command: Any, name: str) -> None:
    with pytest.raises(UsageError, match="name must be up to 64 letters"):
        command(f"--name={name}")


def test_a_name_that_is_a_file_of_the_storage_is_refused(command: Any, tmp_path: Path) -> None:
    Path(tmp_path, "runs").mkdir()
    Path(tmp_path, "runs", "notes.txt").touch()
    tracker = f"sqlite:///{tmp_path}/runs/tracks.sqlite"
    for words in (["--name", "notes.txt"], ["--name", "tracks.sqlite", "--tracking-uri", tracker]):
        with pytest.raises(UsageError, match=r"is that of a file in .*; choose another --name"):
            command(*words)
    with pytest.raises(UsageError, match="is that of a file"):
        command("--name", "tracks.sqlite-journal", "--tracking-uri", tracker)
    assert command("--name", "notes").name == "notes"


def test_a_given_name_is_the_folder(command: Any, tmp_path: Path) -> None:
    given = command("--name", "My_sweep-1.0", "--training.epochs", "7")
    assert given.name == "My_sweep-1.0" and given.storage.uri == f"{tmp_path}/runs/My_sweep-1.0"


def test_places_come_from_flags_then_environment_then_defaults(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = command()
    assert (
        default.root.uri == f"{tmp_path}/runs"
        and default.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    )
    assert default.artifact_root == f"{tmp_path}/runs/mlartifacts"
    monkeypatch.setenv("SAT_RAY_STORAGE", str(tmp_path / "env"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    chosen = command()
    assert (chosen.root.uri, chosen.tracking_uri, chosen.artifact_root) == (
        f"{tmp_path}/env",
        "http://env:5000",
        "",
    )
    flagged = command("--storage", "flag", "--tracking-uri", "http://flag:5000")
    assert (flagged.root.uri, flagged.tracking_uri) == (f"{tmp_path}/flag", "http://flag:5000")
    assert {default.name, chosen.name, flagged.name} == {"digits"}


def test_s3_storage_needs_a_tracking_server(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError,
        match="on S3, where no SQLite database can live; give "
        "--tracking-uri or MLFLOW_TRACKING_URI",
    ):
        command("--storage", "s3://bucket/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert command("--storage", "s3://bucket/x").storage.uri == "s3://bucket/x/digits"


def test_a_sweep_started_again_with_the_same_command_may_use_its_folder(command: Any) -> None:
    for recipe in RECIPES:
        given = command(recipe)
        claim_folder(given)
        claim_folder(given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "recipe '' is unknown"),
        (["", "--config", "a.yaml"], "--config must stand without a RECIPE"),
        (["digits", "--search.pairs", "relu/"], "search.pairs must be activation/attacker_activa"),
        (["digits", "--tracking-uri", "foo://x"], "tracking_uri foo://x has the unknown scheme"),
        (["digits", "--tracking-uri", "folder"], "tracking_uri folder is a folder"),
        (["digits", "--storage", __file__], "storage must be a folder or s3://bucket/prefix, got "),
    ],
)
def test_what_would_end_the_sweep_at_once_ends_its_dry_run_too(
    command: Any, words: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        command(*words, "--dry-run")
