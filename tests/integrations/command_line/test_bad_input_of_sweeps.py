"""What can be refused only when storage, tracking or the cluster is looked at: one line,
status not 0, nothing harmed.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from sweeps import filled, pipeline, prepare, start
from waiting import PATIENCE_SECONDS, until

from sat_ray.data.shards.manifest import CorruptShardError
from sat_ray.storage.sealed import sealed
from sat_ray.sweep.tasks import TRAIN, Dataset

RECIPE = "digits_smoke"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the data of the smoke recipe once."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(RECIPE, "--storage", str(root))
    return root


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line on stderr of a command that must have failed."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def files(root: Path) -> dict[str, bytes]:
    """Return every file below a folder but the tracker's, the lock's, and the name that a sweep
    gives itself when it starts.
    """
    others = ("mlflow", "mlartifacts", "driver", "identity.json")
    found = (
        path
        for path in root.rglob("*")
        if path.is_file() and not any(word in str(path) for word in others)
    )
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_a_damaged_or_missing_shard_stops_the_sweep_before_anything_is_trained(
    prepared: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    shard = next((root / "data").rglob("val-00000.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    before = files(root)
    message = refused(pipeline("sweep", RECIPE, "--storage", str(root)))
    assert "val-00000.parquet" in message
    assert "sha256" in message
    assert files(root) == before


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "must hold a JSON object, got a list"),
        ('{"schema_version": 0}', "must have schema version 2, got 0"),
    ],
)
def test_a_damaged_manifest_is_named(
    prepared: Path, tmp_path: Path, written: str, said: str
) -> None:
    shutil.copytree(prepared / "data", tmp_path / "data")
    (manifest,) = (tmp_path / "data").rglob("manifest.json")
    manifest.write_text(written)
    with pytest.raises(CorruptShardError, match=said) as caught:
        Dataset.open(str(manifest.parent))
    assert str(manifest) in str(caught.value)
    if written == "{":
        assert "manifest.json is no JSON" in refused(
            pipeline("sweep", RECIPE, "--storage", str(tmp_path))
        )


def test_more_workers_than_the_machine_can_ever_hold_are_refused(prepared: Path) -> None:
    flags = ["--resources.cpus-per-worker", "512", "--name", "too-large"]
    message = refused(pipeline("sweep", RECIPE, "--storage", str(prepared), *flags))
    assert "resources.train_workers" in message
    assert "can never hold" in message


def test_images_that_nobody_said_where_they_are_are_missed_before_ray_starts(
    tmp_path: Path,
) -> None:
    for stage in ("sweep", "prepare"):
        done = pipeline(stage, "cifar10_resnet18", "--storage", str(tmp_path))
        message = refused(done)
        assert "data.path must not be empty; for cifar10 give the official archive" in message
        assert "Ray:" not in done.stdout


def test_a_stage_alone_asks_for_its_own_room_only(tmp_path: Path) -> None:
    """Data for a large cluster may be prepared on a small machine;
    where it is and how much there is of it is the last line.
    """
    done = pipeline(
        "prepare", RECIPE, "--storage", str(tmp_path), "--resources.cpus-per-worker", "512"
    )
    assert done.returncode == 0, done.stderr
    (manifest,) = (tmp_path / "data").rglob("manifest.json")
    splits = json.loads(manifest.read_text())["splits"]
    assert (
        f"{splits['train']:,} train, {splits['val']:,} val and {splits['test']:,} test images of "
        "10 classes in"
    ) in done.stdout
    assert str(manifest.parent.name) in done.stdout


def test_a_tracking_server_that_does_not_answer_is_refused_before_ray_starts(
    prepared: Path,
) -> None:
    started = time.monotonic()
    words = ("--storage", str(prepared), "--tracking-uri", "http://127.0.0.1:9")
    message = refused(pipeline("sweep", RECIPE, *words))
    assert "127.0.0.1:9" in message
    assert time.monotonic() - started < 120  # MLflow itself would try for some minutes


def test_results_of_other_code_are_refused_and_the_modules_named(
    prepared: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    record = {
        "stage": "train",
        "key": "0" * 32,
        "created": 0.0,
        "seconds": 0.0,
        **filled(TRAIN, {}),
    }
    record |= {"code": {"sat_ray.sweep.execute": "older"}}
    (root / RECIPE / "state" / "train").mkdir(parents=True)
    (root / RECIPE / "state" / "train" / f"{'0' * 32}.json").write_text(json.dumps(sealed(record)))
    message = refused(pipeline("sweep", RECIPE, "--storage", str(root)))
    assert "sat_ray.sweep.execute" in message
    assert "--on-code-change" in message


def test_a_stage_run_before_its_inputs_names_the_command_to_run_first(prepared: Path) -> None:
    message = refused(pipeline("train", RECIPE, "--storage", str(prepared)))
    assert "pipelines/search.py" in message


def test_an_interrupted_sweep_says_how_to_go_on(tmp_path: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    driver = start("sweep", RECIPE, "--storage", str(tmp_path), **pipes)
    until((tmp_path / "data").exists, what="the folder of the data")
    driver.terminate()
    _, errors = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 130
    assert b"the same command goes on from there" in errors
