"""Searches that a budget ends, for real: what is committed is trained, judged and reported, and a
larger budget goes on from there.
"""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sweeps import leaderboard, numbers, pipeline, prepare, records

pytestmark = pytest.mark.fault  # minutes: several sweeps, each with a private Ray
# accelerator-hours: spent by any trial, and by none of these
TINY, AMPLE = ("--budget", "0.000001"), ("--budget", "1")
ONE_AT_A_TIME = ("--resources.cpus-per-trial", str(len(os.sched_getaffinity(0))))
SPACE = shlex.split(
    "digits_smoke --search.activations silu:1 relu parametric_softplus:5,10 "
    "--search.pairs --final.seeds 0"
)


def run(name: str, *arguments: str) -> str:
    done = pipeline(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tried(folder: Path) -> set[tuple[str, int]]:
    """Return (activation, epochs) of every committed trial and rung."""
    found = (record["payload"] for record in records(folder, "search").values())
    return {(payload["configuration"]["activation"], payload["until"]) for payload in found}


def parent(storage: Path) -> Any:
    """Return the sweep's own run."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("digits_smoke")
    (found,) = client.search_runs([experiment.experiment_id], "tags.sat_ray.kind = 'sweep'")
    return found.data


def test_a_cut_search_is_reported_and_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    command = (*SPACE, *ONE_AT_A_TIME, "--name", "cut", "--storage", str(tmp_path))
    folder = tmp_path / "cut"
    said = run("sweep", *command, *TINY)
    board, first = leaderboard(folder), records(folder, "search")
    assert tried(folder) == {("relu", 1)}, (
        "the baseline is searched first, though it is named second"
    )
    assert {row["activation"] for row in board["rows"]} == {"relu"}
    assert board["search"]["cut_by_budget"] and (
        board["search"]["done"],
        board["search"]["planned"],
    ) == (1, 4)
    assert board["search"]["left_out"] == ["silu", "parametric_softplus"]
    sentence = "The search was cut by its budget of 1e-06 accelerator-hours at 1 of 4 trainings"
    for text in (
        said,
        (folder / "leaderboard.md").read_text(),
        (folder / "report.html").read_text(),
        parent(tmp_path).tags["sat_ray.search"],
    ):
        assert sentence in text
    status = run("status", "cut", "--storage", str(tmp_path))
    assert sentence in status and "1/1" in status and "done; the report" in status

    again = run("sweep", *command, *TINY)
    assert again.count("0 computed") == 4 and records(folder, "search") == first
    assert numbers(leaderboard(folder)) == numbers(board)

    priced = "--cost.price-per-accelerator-hour 2 --resources.images-per-second 500"
    run("sweep", *command, *AMPLE, *shlex.split(priced))
    whole, second = leaderboard(folder), records(folder, "search")
    assert {key: second[key] for key in first} == first and len(second) == 4
    assert not whole["search"]["cut_by_budget"] and {
        row["activation"] for row in whole["rows"]
    } == {"silu", "relu", "parametric_softplus"}
    assert "cut by its budget" not in (folder / "report.html").read_text()
    (relu,) = (row for row in numbers(whole) if row["activation"] == "relu")
    assert relu["robust_accuracy"] == board["rows"][0]["robust_accuracy"]
    shown, cost = parent(tmp_path), whole["cost"]
    assert shown.tags["sat_ray.search"].startswith("The search ran to its end: 4 of 4 trainings")
    assert shown.metrics["cost/money"] == pytest.approx(
        cost["total"]["accelerator_seconds"] / 3600 * 2
    )
    assert shown.metrics["cost/search/accelerator_seconds"] == pytest.approx(
        cost["stages"][0]["accelerator_seconds"]
    )
    assert shown.metrics["cost/train/estimated_accelerator_seconds"] == pytest.approx(
        cost["stages"][1]["estimated_accelerator_seconds"]
    )


def result(folder: Path) -> dict[str, Any]:
    """Return what the search came to last."""
    found: dict[str, Any] = max(
        records(folder, "search_result").values(), key=lambda record: record["created"]
    )["payload"]
    return found


@pytest.mark.parametrize("method", ["asha", "optuna"])
def test_an_asynchronous_search_is_cut_and_goes_on_with_a_larger_budget(
    tmp_path: Path, method: str
) -> None:
    asked = shlex.split(f"--name {method} --search.method {method} --search.samples 5")
    arguments = (*SPACE, *ONE_AT_A_TIME, "--storage", str(tmp_path), *asked)
    prepare(*arguments)
    folder = tmp_path / method
    run("search", *arguments, *TINY)
    assert tried(folder) == {("relu", 1), ("relu", 2)}, (
        "the baseline is trained whatever the budget"
    )
    first = records(folder, "search")
    assert result(folder)["cut"] and (result(folder)["done"], result(folder)["planned"]) == (1, 5)
    run("search", *arguments, *TINY)
    assert records(folder, "search") == first and len(records(folder, "search_result")) == 1
    spent = max(record["payload"]["accelerator_seconds"] for record in first.values())
    run(
        "search", *arguments, "--budget", str((spent + 1e-3) / 3600)
    )  # enough for another trial to start, and not for its second rung
    assert tried(folder) == {("relu", 1), ("relu", 2), ("silu", 1)}
    if method == "optuna":  # ASHA may have stopped silu by its score, and then that stands
        assert len(records(folder, "search_stopped")) == 1, (
            "that the budget cut silu is no decision against it"
        )
    run("search", *arguments, *AMPLE)
    assert {key: records(folder, "search")[key] for key in first} == first
    assert {activation for activation, _ in tried(folder)} == {
        "silu",
        "relu",
        "parametric_softplus",
    }
    assert method == "asha" or ("silu", 2) in tried(folder), "no scheduler stops a trial of Optuna"
    assert not result(folder)["cut"] and result(folder)["done"] == result(folder)["planned"]
