"""What killed attempts left is removed when a sweep starts; what a record names,
and what may still be written, stays.
"""

import os
import time
from pathlib import Path

import pytest
from sweeps import filled

from sat_ray.storage.store import Storage
from sat_ray.sweep.records.leftovers import (
    LIVING_SECONDS,
    remove_leftovers,
    supersede_without_outcomes,
)
from sat_ray.sweep.records.store import Records, Stage, attempt_began, attempt_name
from sat_ray.sweep.tasks import EVALUATE, STAGES, STRONG, TRAIN, VALIDATE


def attempt(*, age: float) -> str:
    """Return the name of an attempt that began `age` seconds ago."""
    return f"{time.time_ns() - int(age * 1e9):x}-1f-a0b1c2"


OLD, YOUNG = LIVING_SECONDS + 60, 60.0


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the records of a sweep with one training and one shard, hours old,
    whose first attempts were killed.
    """
    found = Records(Storage.at(tmp_path / "sweep"))
    names = [f"checkpoints/train/silu-s0-k1-{attempt(age=age)}" for age in (OLD, 2 * OLD, YOUNG)]
    for name in names:
        found.storage.write(f"{name}/model.safetensors", b"weights")
        found.storage.write_json(f"{name}/model.json", {"sha256": "same"})
    found.commit(TRAIN, "k1", **filled(TRAIN, {"path": names[0], "sha256": "same"}), seconds=1.0)
    parts = [
        f"state/parts/{key}-{attempt(age=age)}.parquet"
        for key, age in (("e1", OLD), ("e1", 3 * OLD), ("e2", OLD), ("e3", YOUNG))
    ]
    for name in parts:
        found.storage.write(name, b"rows")
    found.commit(EVALUATE, "e1", **filled(EVALUATE, {"path": parts[0]}), seconds=1.0)
    return found


def files(records: Records) -> set[str]:
    """Return the files below a sweep's folder."""
    root = Path(records.storage.uri)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_what_no_record_names_is_removed_once_its_attempt_is_long_gone(records: Records) -> None:
    before = files(records)
    removed = remove_leftovers(records.storage)
    assert len(removed) == 3 and {path.split("/")[0] for path in removed} == {
        "checkpoints",
        "state",
    }
    assert before - files(records) == {
        path for path in before if any(path == one or path.startswith(f"{one}/") for one in removed)
    }
    (train,), (shard,) = records.all(TRAIN), records.all(EVALUATE)
    assert records.storage.exists(f"{train.payload['path']}/model.json") and records.storage.exists(
        shard.payload["path"]
    )
    assert (
        len(records.storage.folders("checkpoints/train")) == 2
        and len(records.storage.names("state/parts")) == 2
    )
    assert remove_leftovers(records.storage) == []


@pytest.mark.parametrize("stage", [EVALUATE, STRONG], ids=lambda stage: stage.name)
def test_a_shard_without_its_outcomes_is_attacked_again(stage: Stage, tmp_path: Path) -> None:
    records = Records(Storage.at(tmp_path))
    parts = {key: f"state/parts/{key}-{attempt(age=OLD)}.parquet" for key in ("kept", "gone")}
    for key, part in parts.items():
        records.storage.write(part, b"rows")
        records.commit(stage, key, **filled(stage, {"path": part}), seconds=1.0)
    records.commit(VALIDATE, "v", **filled(VALIDATE, {"path": "state/parts/v"}), seconds=1.0)
    assert supersede_without_outcomes(records) == 0
    records.storage.discard(parts["gone"])
    assert supersede_without_outcomes(records) == 1
    assert records.keys(stage) == ["kept"] and records.keys(VALIDATE) == ["v"]
    (aside,) = records.storage.folders("superseded")
    assert records.storage.names(f"superseded/{aside}/{stage.name}") == ["gone.json"]
    assert supersede_without_outcomes(records) == 0


def test_what_a_record_that_was_moved_aside_names_stays(records: Records) -> None:
    (train,) = records.all(TRAIN)
    records.supersede(train)
    remove_leftovers(records.storage)
    assert records.storage.exists(f"{train.payload['path']}/model.json")


@pytest.mark.parametrize("stage", [*STAGES, Stage("later", 1, ())])
@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("attempts", [1, 2])
def test_the_parts_of_every_stage_stay_however_old_they_are(
    stage: Stage, aside: bool, attempts: int, tmp_path: Path
) -> None:
    records = Records(Storage.at(tmp_path / "sweep"))
    parts = [f"state/parts/s1-{attempt(age=n * OLD)}.parquet" for n in range(1, attempts + 1)]
    for name in parts:
        records.storage.write(name, b"rows")
    record = records.commit(stage, "s1", **filled(stage, {"path": parts[0]}), seconds=1.0)
    if aside:
        records.supersede(record)
    assert remove_leftovers(records.storage) == parts[1:]
    assert records.storage.exists(parts[0])


def test_a_model_whose_record_a_person_moved_away_stays_and_one_half_written_goes(
    records: Records,
) -> None:
    whole, half = (f"checkpoints/train/relu-s0-{key}-{attempt(age=OLD)}" for key in ("k2", "k3"))
    records.storage.write(f"{half}/model.safetensors", b"weights")
    records.storage.write(f"{whole}/model.safetensors", b"weights")
    records.storage.write_json(f"{whole}/model.json", {"sha256": "other"})
    said: list[str] = []
    removed = remove_leftovers(records.storage, say=said.append)
    assert half in removed and whole not in removed
    assert records.storage.exists(f"{whole}/model.safetensors")
    (sentence,) = said
    assert sentence.startswith("models without a record are kept, 1 in checkpoints/train: relu-s0")
    records.storage.write(f"{whole}/model.json", b"{")  # damaged, and it may be the only copy
    assert remove_leftovers(records.storage) == []


def test_the_parts_of_a_record_that_cannot_be_read_stay(records: Records) -> None:
    records.storage.write("state/evaluate/e1.json", b"{}")
    before = {path for path in files(records) if path.startswith("state/parts/e1-")}
    remove_leftovers(records.storage)
    assert len(before) == 2 and before <= files(records)


def test_temporary_files_of_killed_writers_go_too(records: Records) -> None:
    stale = Path(records.storage.uri, "state", "train", ".tmp-0")
    stale.write_bytes(b"half a record")
    os.utime(stale, (0, 0))
    assert str(stale) in remove_leftovers(records.storage)
    assert not stale.exists()


@pytest.mark.parametrize("name", ["x", "silu-a5-s0-0123abcd", "README.md", ""])
def test_a_name_without_an_attempt_is_of_no_age(name: str) -> None:
    assert attempt_began(name) is None


def test_an_attempt_s_name_says_when_it_began() -> None:
    for name in (
        f"silu-a0.5-s0-0123abcd-{attempt_name()}",
        f"{'0' * 32}-{attempt_name()}.parquet",
        attempt_name(),
    ):
        began = attempt_began(name)
        assert began is not None and abs(time.time() - began) < 60
