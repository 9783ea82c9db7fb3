"""The benchmarks run, and write the figures that the contract names; how fast anything is,
no test says.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hardware
import pytest
import scaling
import simulation
import torch
import training
from load import most_at_once
from repository import ROOT
from watched_sweep import Ran, Sample

FOLDER = ROOT / "benchmarks"
CONTRACT = {
    "evaluation": {"speedup", "robust_accuracy", "passes_per_image", "floor_share"},
    "training": {
        "sat_over_plain",
        "sat_over_floor",
        "speedup_over_textbook",
        "images_per_second",
        "scaling_2_workers",
    },
    "loading": {"images_per_second_per_core", "wait_share"},
    "agreement": {"robust_accuracy", "difference_in_points", "speedup"},
    "pipeline": {"wall_over_compute", "wall_seconds", "peak_rss_gib"},
}
LIBRARIES = {"torchattacks", "foolbox", "art"}


def benchmark(name: str, *arguments: str) -> str:
    """Run a benchmark as a user would, on one core, and return what it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "140"}
    command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark at its smallest and read the JSON it writes."""
    path = folder / "new" / f"{name}.json"
    benchmark(name, "--smoke", "--json", str(path), *arguments)
    written: dict[str, Any] = json.loads(path.read_text())
    return written


def numbers(value: Any) -> list[float]:
    """Return every number in a JSON value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    return [float(value)]


def check_contract(name: str, written: dict[str, Any]) -> None:
    """Assert the contract's keys, nothing beside them but where and how they were measured,
    and finite values.
    """
    assert set(written) == CONTRACT[name] | {"machine", "details"}
    assert {"cpu", "cores", "torch", "load_1_minute"} <= set(written["machine"])
    values = [
        number
        for key in CONTRACT[name] - {"difference_in_points"}
        for number in numbers(written[key])
    ]
    assert all(math.isfinite(number) and number >= 0 for number in values), written


def test_help_names_the_options_of_every_benchmark() -> None:
    """One process shows all of them, since each would import torch."""
    script = (
        "import contextlib, runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    print('benchmark', path)\n"
        "    sys.argv = [path, '--help']\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_path(path, run_name='__main__')\n"
    )
    paths = [str(FOLDER / f"{name}.py") for name in CONTRACT]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
        env=os.environ | {"COLUMNS": "140", "PYTHONPATH": str(FOLDER)},
    )
    shown = done.stdout.split("benchmark " + str(FOLDER))[1:]
    for name, text in zip(CONTRACT, shown, strict=True):
        assert "--quick" in text and "--json PATH" in text
        if name in ("loading", "pipeline"):
            assert all(key in text for key in CONTRACT[name] - {"wall_seconds"})


def test_ours_is_at_most_as_robust_as_any_library_finds_from_the_same_starts(
    tmp_path: Path,
) -> None:
    for library in ("torchattacks", "foolbox", "art"):
        pytest.importorskip(library)
    written = figures(
        "evaluation", tmp_path, "--gradient", "bf16", "--model", "small_resnet", "--size", "16"
    )
    check_contract("evaluation", written)
    assert set(written["speedup"]) == LIBRARIES
    robust = written["robust_accuracy"]
    assert set(robust) == LIBRARIES | {"ours"}
    tolerance = max(0.005, 2 / written["details"]["size"]["images"])
    assert all(0 <= robust["ours"] <= robust[library] + tolerance for library in LIBRARIES), robust
    assert 0 < written["passes_per_image"] <= written["details"]["size"]["steps"] + 1
    assert written["details"]["fast"]["calibration_seconds"] > 0
    assert abs(written["details"]["fast"]["robust_accuracy"] - robust["ours"]) <= tolerance
    assert written["details"]["size"]["hardware"] == {
        "device": "cpu",
        "precision": "float32",
        "model": "small_resnet",
        "pixels": 16,
    }
    shares = [
        *written["details"]["share_of_matrix_rate"].values(),
        written["details"]["fast"]["share_of_matrix_rate"],
    ]
    assert all(0 < share < math.inf for share in shares), shares


def test_the_cascade_and_autoattack_agree_within_two_images(tmp_path: Path) -> None:
    pytest.importorskip("torchattacks")
    written = figures("agreement", tmp_path)
    check_contract("agreement", written)
    (accuracy,), (difference,) = (
        written["robust_accuracy"].values(),
        written["difference_in_points"].values(),
    )
    assert difference == pytest.approx(100 * (accuracy["ours"] - accuracy["autoattack"]))
    assert abs(difference) <= 100 * 2 / written["details"]["size"]["images"]
    (seconds,), (speedup,) = written["details"]["seconds"].values(), written["speedup"].values()
    official = sum(seconds["autoattack"][part] for part in seconds["ours"])
    assert speedup == pytest.approx(official / sum(seconds["ours"].values()))
    (strong,) = written["details"]["strong"].values()
    assert strong["difference_in_points"] <= 100 * 2 / written["details"]["size"]["images"]
    official, ours = (sum(seconds[side].values()) for side in ("autoattack", "strong"))
    assert strong["speedup"] == pytest.approx(official / ours)


def test_the_attack_of_a_training_step_computes_no_weight_gradient(tmp_path: Path) -> None:
    written = figures("training", tmp_path)
    check_contract("training", written)
    counts = written["details"]["weight_gradient_convolutions_per_step"]
    assert counts["attack"] == 0
    assert counts["sat"] == counts["plain"] > 0
    modelled = list(written["details"]["modelled_scaling"].values())
    assert modelled == sorted(modelled, reverse=True) and 0 < modelled[-1] <= modelled[0] <= 1
    assert (
        counts["textbook"] == 2 * counts["plain"]
    )  # what the counter sees where they are computed


def test_training_is_measured_on_any_network_size_and_precision() -> None:
    on = hardware.Hardware(model="small_resnet", pixels=16, precision="bf16")
    size = dataclasses.replace(training.SMOKE, hardware=on)
    assert on.images()["train"].images.shape[1:] == (3, 16, 16)
    measured, details = training.measure_steps(
        size, training.batch_of(on.images()["train"], size.images)
    )
    assert set(measured) == CONTRACT["training"] - {"scaling_2_workers"}
    assert set(details["median_seconds_per_step"]) == {
        "sat",
        "plain",
        "attack",
        "textbook",
        "textbook_bf16",
    }
    assert details["weight_gradient_convolutions_per_step"]["attack"] == 0
    assert (
        details["gigaflops_per_step"]["plain"]
        < details["gigaflops_per_step"]["sat"]
        <= details["gigaflops_per_step"]["textbook"]
    )
    step, operations = (
        details["seconds_per_step"]["sat"][0],
        1e9 * details["gigaflops_per_step"]["sat"],
    )
    share = operations / step / (1e12 * details["matrix_rate_teraflops"])
    assert details["share_of_matrix_rate"] == {"sat": pytest.approx(share)}
    assert details["peak_memory_gib"]["process"] > 0.1


@pytest.mark.fault
def test_compiled_training_is_measured_beside_the_plain_one(tmp_path: Path) -> None:
    written = figures("training", tmp_path, "--compile")
    check_contract("training", written)
    details = written["details"]
    assert details["seconds_to_compile"] > details["median_seconds_per_step"]["compiled"] > 0
    assert details["seconds_over_sat"]["compiled"] > 0


def test_what_a_benchmark_cannot_be_run_on_is_refused_in_one_line() -> None:
    asked = argparse.Namespace(device="cpu", precision="float32", model="", size=32)
    wrong = {
        "size": (4, "--size must be an integer >= 8, got 4"),
        "model": ("resnet5", "--model 'resnet5' is unknown; did you mean"),
    }
    if not torch.cuda.is_available():
        wrong["device"] = ("cuda", "--device must be cpu where torch finds no GPU, got cuda")
    for name, (value, message) in wrong.items():
        with pytest.raises(SystemExit, match=message) as error:
            hardware.from_options(argparse.Namespace(**vars(asked) | {name: value}))
        assert "\n" not in str(error.value)


def test_the_modelled_scaling_waits_for_what_the_backward_pass_does_not_hide() -> None:
    size = 25.6e6 * 4  # bytes of ResNet-50's gradients
    network = scaling.network()
    last = network.all_reduce(simulation.LAST_BUCKET, 256)
    # 160 ms of backward pass hide all but the last bucket
    assert scaling.efficiency(0.5, 0.3, size, workers=256) == pytest.approx(0.5 / (0.5 + last))
    assert scaling.efficiency(0.002, 0.0, size, workers=8) == pytest.approx(
        0.002 / (0.002 + network.all_reduce(size, 8))
    )


@pytest.mark.fault
def test_the_simulation_is_checked_against_real_trainings(tmp_path: Path) -> None:
    written = figures("scaling", tmp_path, "--check")
    trained = {"workers: 1", "workers: 2", "workers: 4"}
    for name in ("predicted_seconds", "measured_seconds", "predicted_over_measured"):
        assert set(written[name]) == trained
        assert all(0 < value < math.inf for value in written[name].values()), written


def test_the_page_about_scaling_shows_the_inputs_and_the_prediction_of_today() -> None:
    page = (ROOT / "docs" / "explanation" / "scaling.md").read_text()
    assert scaling.input_table() in page
    for name in ("imagenet_resnet101", "imagenet_resnet50_299"):
        assert scaling.markdown_row(*scaling.row_of(name)) in page


def test_loading_writes_its_figures(tmp_path: Path) -> None:
    written = figures("loading", tmp_path)
    check_contract("loading", written)
    assert written["wait_share"] < 1


FAKE_SWEEP = """
import json, pathlib, subprocess, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--storage") + 1], sys.argv[1])
resources = {"train_workers": 2, "cpus_per_worker": 1}
resources |= {"cpus_per_trial": 1, "cpus_per_evaluation": 1}
done = [("search", "a", 1.0), ("search", "a", 3.0), ("train", "a", 2.0)]
done += [("evaluate", "a", 1.5), ("evaluate", "a", 0.5)]
for number, (stage, name, seconds) in enumerate(done):
    record = {"stage": stage, "seconds": seconds, "payload": {"name": name}}
    (folder / "state" / stage).mkdir(parents=True, exist_ok=True)
    (folder / "state" / stage / f"{number}.json").write_text(json.dumps(record))
(folder / "config.json").write_text(json.dumps({"resources": resources}))
seen = pathlib.Path(__file__).parents[1] / "seen"
hold = "import pathlib, sys, time; block, seen = b'x' * (200 << 20), pathlib.Path(sys.argv[1])"
hold += "\\nwhile not seen.exists(): time.sleep(0.05)"
subprocess.run([sys.executable, "-c", hold, seen])
print("[00:02] train done in 2 s: 1 computed, 0 reused")
"""
BENCHMARK_OF_A_FAKE = """
import common, pathlib, pipeline, sys
common.ROOT = pathlib.Path(sys.argv.pop(1))
read = pipeline.memory_of

def memory_of(process):
    found = read(process)
    if found[0] > 200 << 20:
        (common.ROOT / "seen").touch()  # the child need not stay any longer
    return found

pipeline.memory_of = memory_of
pipeline.main()
"""


def test_the_pipeline_benchmark_adds_up_records_and_memory(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "sweep.py").write_text(FAKE_SWEEP)
    path = tmp_path / "figures.json"
    command = [sys.executable, "-c", BENCHMARK_OF_A_FAKE, str(tmp_path), "--quick"]
    command += ["--json", str(path)]
    paths = os.environ | {"PYTHONPATH": str(FOLDER)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=paths
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(path.read_text())
    check_contract("pipeline", written)
    details = written["details"]
    # a trial goes on from its last rung, so its longest record counts; a training keeps two workers
    # busy; shards add up
    assert details["core_seconds_of_stage"] == {"search": 3.0, "train": 4.0, "evaluate": 2.0}
    assert written["wall_over_compute"] == pytest.approx(
        written["wall_seconds"] / (9.0 / written["machine"]["cores"])
    )
    assert written["peak_rss_gib"] > 0.19  # the child of the sweep is counted
    assert details["wall_seconds_of_stage"] == {"train": 2.0}


def test_growth_is_told_from_the_first_tenth_to_the_last_while_shards_are_made() -> None:
    steady = [
        Sample(float(shards), shards, 100.0 + 2 * shards, 0.0) for shards in range(0, 1000, 50)
    ]
    reported = Sample(
        2000.0, 1000, 9000.0, 0.0
    )  # all shards are there: what the report takes is not theirs
    ran = Ran(2000.0, "[00:01] evaluate done in 7 s: 1000 computed", {}, [*steady, reported])
    assert ran.growth("driver", 1000) == pytest.approx(2.0, rel=0.15)
    assert math.isnan(ran.growth("stage", 1000))
    assert ran.stage_seconds() == {"evaluate": 7.0}


def test_trials_at_once_are_counted_from_what_their_records_say() -> None:
    ended = [
        {"created": end, "seconds": seconds}
        for end, seconds in ((10.0, 5.0), (12.0, 4.0), (9.0, 1.0), (20.0, 8.0))
    ]
    assert most_at_once(ended) == 3
    assert most_at_once([]) == 0
