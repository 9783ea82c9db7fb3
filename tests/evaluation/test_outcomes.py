"""Merging shards: each image once or not at all, the same bytes whatever the shards were, and
little memory whatever their number.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import filled

from sat_ray.evaluation.outcome_files import COLUMNS, evaluation_of, read_outcomes
from sat_ray.evaluation.outcomes import OUTCOME_SCHEMA, SORT_ORDER
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import parquet_bytes
from sat_ray.sweep.records.merge_outcomes import check_each_id_once, merge_outcomes
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.tasks import EVALUATE
from sat_ray.utils.serialization import sha256

GROUPS = (("pgd-20", 0), ("pgd-20", 1), ("apgd-ce-100", 0), ("square-5000", 0))
INPUTS = {
    "weights": "w",
    "attacks": [{"name": "pgd-20", "steps": 20}],
    "seed": 0,
    "dataset": "d",
    "environment": {"slots": 8},
}


def rows_of(ids: np.ndarray, *, groups: Sequence[tuple[str, int]] = GROUPS) -> pa.Table:
    """Return outcomes as evaluate returns them; every value is a function of attack,
    restart and image id.
    """
    tables = []
    for number, (attack, restart) in enumerate(groups):
        noise = (
            np.random.default_rng(number).random((int(ids.max()) + 1, 3), dtype=np.float32)[ids].T
        )
        broken = noise[0] < 0.5
        columns = {
            "image_id": ids, "label": ids % 10, "clean_prediction": ids % 10,
            "clean_margin": noise[1],
            "attack": pa.repeat(attack, len(ids)), "restart": np.full(len(ids), restart),
            "adversarial_prediction": (ids + broken) % 10, "adversarial_margin": noise[0] - 0.5,
            "first_broken_step": np.where(broken, (noise[1] * 20).astype(np.int32), -1),
            "passes": np.full(len(ids), 21), "distance": noise[2], "robust": ~broken,
        }  # fmt: skip
        tables.append(
            pa.table(
                {
                    field.name: pa.array(columns[field.name], type=field.type)
                    for field in OUTCOME_SCHEMA
                }
            )
        )
    return pa.concat_tables(tables).sort_by(SORT_ORDER).cast(OUTCOME_SCHEMA)


def written(storage: Storage, tables: Sequence[pa.Table], **inputs: object) -> list[Record]:
    """Write parts as the evaluate stage does and return their records."""
    parts = []
    for number, table in enumerate(tables):
        path, data = f"state/parts/{number}.parquet", parquet_bytes(table)
        storage.write(path, data)
        payload = {"path": path, "sha256": sha256(data)}
        own = INPUTS | {"rows": [number, number + 1]} | inputs
        parts.append(
            Record(
                stage="evaluate",
                key=f"k{number}",
                inputs=own,
                payload=payload,
                code={},
                created=0.0,
                seconds=0.0,
            )
        )
    return parts


def merged(folder: Path, tables: Sequence[pa.Table], expected: np.ndarray) -> bytes:
    """Return the bytes of the merged file."""
    storage = Storage.at(folder)
    return storage.read(
        merge_outcomes(written(storage, tables), expected, Records(storage), name="m")
    )


IDS = np.arange(7, 7 + 3 * 60, 3)


@pytest.fixture(scope="module")
def in_one_piece(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the merged file of one shard that holds every image in order."""
    return merged(tmp_path_factory.mktemp("whole"), [rows_of(IDS)], IDS)


@settings(max_examples=12)
@given(
    cuts=st.lists(st.integers(1, len(IDS) - 1), max_size=8, unique=True), seed=st.integers(0, 99)
)
def test_the_merged_file_is_the_same_bytes_whatever_the_shards_were(
    cuts: list[int], seed: int, in_one_piece: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pieces = np.split(np.random.default_rng(seed).permutation(IDS), sorted(cuts))
    assert (
        merged(tmp_path_factory.mktemp("cut"), [rows_of(piece) for piece in pieces], IDS)
        == in_one_piece
    )


def test_the_merged_file_holds_every_row_of_every_shard_sorted(in_one_piece: bytes) -> None:
    table = pq.read_table(pa.BufferReader(in_one_piece))
    assert table.equals(rows_of(IDS)) and table.schema == OUTCOME_SCHEMA


def test_images_that_an_attack_never_saw_because_an_earlier_one_broke_them_need_no_rows_of_it(
    tmp_path: Path,
) -> None:
    table = rows_of(IDS)
    survivors = table.filter(
        pa.compute.or_(
            pa.compute.not_equal(table["attack"], "square-5000"),
            pa.compute.greater(table["image_id"], 80),
        )
    )
    halves = [
        survivors.filter(pa.compute.equal(pa.compute.less(survivors["image_id"], 100), low))
        for low in (True, False)
    ]
    assert pq.read_table(pa.BufferReader(merged(tmp_path, halves, IDS))).equals(survivors)


def test_a_row_group_holds_one_attack_and_restart_and_never_more_rows_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sat_ray.sweep.records.merge_outcomes.ROWS_PER_GROUP", 40)
    file = pq.ParquetFile(
        pa.BufferReader(merged(tmp_path, [rows_of(half) for half in (IDS[::2], IDS[1::2])], IDS))
    )
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes == [40, 20] * len(GROUPS)


def test_the_merged_file_says_what_was_evaluated_and_not_by_which_shards(tmp_path: Path) -> None:
    table = pq.read_table(
        pa.BufferReader(merged(tmp_path, [rows_of(IDS[:9]), rows_of(IDS[9:])], IDS))
    )
    assert evaluation_of(table) == INPUTS
    assert evaluation_of(rows_of(IDS)) is None


def test_no_image_at_all_is_an_empty_file(tmp_path: Path) -> None:
    table = pq.read_table(
        pa.BufferReader(merged(tmp_path, [OUTCOME_SCHEMA.empty_table()], IDS[:0]))
    )
    assert table.num_rows == 0 and table.schema == OUTCOME_SCHEMA


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (
            [IDS[:30]],
            (
                r"outcomes of m: doubled ids \[\], missing ids \[97, 100, 103, 106, 109\], "
                r"unexpected ids \[\]"
            ),
        ),
        (
            [IDS[:31], IDS[30:]],
            r"outcomes of m: doubled ids \[97\], missing ids \[\], unexpected ids \[\]",
        ),
        (
            [IDS, np.array([5])],
            r"outcomes of m: doubled ids \[\], missing ids \[\], unexpected ids \[5\]",
        ),
        (
            [np.concatenate([IDS, IDS[4:6]])],
            (
                r"outcomes of m, attack apgd-ce-100, restart 0 must hold each image once, "
                r"doubled ids \[19, 22\]"
            ),
        ),
    ],
    ids=[
        "a shard is missing",
        "an image in two shards",
        "an unexpected image",
        "an image twice in one shard",
    ],
)
def test_anything_but_the_split_each_image_once_is_refused_by_the_ids_and_nothing_is_written(
    shards: list[np.ndarray], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        merged(tmp_path, [rows_of(ids) for ids in shards], IDS)
    assert not (tmp_path / "outcomes").exists()


KILLED = """
import json, sys, time
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.records.store import Record, Records

def endless():
    yield from (Record(**json.loads(line)) for line in sys.argv[2:])
    print("spooled", flush=True)
    time.sleep(600)

merge_outcomes(endless(), [], Records(Storage.at(sys.argv[1])), name="m")
"""


def test_a_merge_that_is_killed_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Enough rows that a spool has been written before the kill."""
    storage = Storage.at(tmp_path / "sweep")
    (part,) = written(storage, [rows_of(np.arange(5000))])
    before = sorted((tmp_path / "sweep").rglob("*"))
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, storage.uri, json.dumps(asdict(part))],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
    ) as merging:
        assert merging.stdout is not None and merging.stdout.readline() == "spooled\n"
        opened = [os.readlink(path) for path in Path(f"/proc/{merging.pid}/fd").iterdir()]
        assert any(path.startswith(f"{tmp_path}/temporary") for path in opened)
        merging.kill()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted((tmp_path / "sweep").rglob("*")) == before


def test_a_shard_evaluated_again_under_another_attack_is_a_doubled_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="doubled ids"):
        merged(tmp_path, [rows_of(IDS, groups=GROUPS[:1]), rows_of(IDS, groups=GROUPS[2:])], IDS)


def test_a_damaged_part_and_one_with_other_columns_are_named(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    parts = written(storage, [rows_of(IDS[:9]), rows_of(IDS[9:])])
    data = storage.read(parts[1].payload["path"])
    storage.write(parts[1].payload["path"], data[:-1] + bytes([data[-1] ^ 1]))
    place = f"outcomes {tmp_path}/state/parts/1.parquet"
    advice = f"move {tmp_path}/state/{parts[1].stage}/k1.json away and run again"
    with pytest.raises(ValueError) as changed:
        merge_outcomes(parts, IDS, Records(storage), name="m")
    assert str(changed.value) == f"{place} do not match their record; {advice}"
    storage.discard(parts[1].payload["path"])
    with pytest.raises(ValueError) as gone:
        merge_outcomes(parts, IDS, Records(storage), name="m")
    assert str(gone.value).startswith(f"{place} are gone; start again what made them, ")
    older = written(storage, [rows_of(IDS).drop_columns(["distance"])])
    with pytest.raises(
        ValueError,
        match=r"outcomes .*/state/parts/0\.parquet must have the columns .*'distance'.*, got ",
    ):
        merge_outcomes(older, IDS, Records(storage), name="m")


def test_parts_of_different_evaluations_are_not_merged(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    first, second = written(storage, [rows_of(IDS[:9]), rows_of(IDS[9:])])
    other = replace(second, inputs=second.inputs | {"weights": "v", "seed": 1})
    with pytest.raises(
        ValueError,
        match=r"records .*/k0\.json and .*/k1\.json .* they differ in seed, weights; move the one",
    ):
        merge_outcomes([first, other], IDS, Records(storage), name="m")


@given(
    shards=st.lists(st.sets(st.integers(0, 12)), max_size=5), expected=st.sets(st.integers(0, 12))
)
def test_shards_pass_exactly_where_they_partition_the_split(
    shards: list[set[int]], expected: set[int]
) -> None:
    partition = sorted(one for shard in shards for one in shard) == sorted(expected)
    if partition:
        check_each_id_once(shards, expected, name="toy")
    else:
        with pytest.raises(ValueError, match="outcomes of toy: doubled ids"):
            check_each_id_once(shards, expected, name="toy")


def test_a_file_and_a_folder_of_parts_read_as_the_same_rows(tmp_path: Path) -> None:
    merged(tmp_path, [rows_of(IDS[:9]), rows_of(IDS[9:])], IDS)
    whole, parts = (
        read_outcomes(f"{tmp_path}/outcomes/m.parquet"),
        read_outcomes(f"{tmp_path}/state/parts/"),
    )
    assert (
        evaluation_of(whole) == INPUTS
        and whole.equals(rows_of(IDS).select(COLUMNS))
        and parts.sort_by(SORT_ORDER).equals(whole)
    )
    assert read_outcomes(f"{tmp_path}/outcomes").equals(whole)


def test_what_is_not_one_models_outcomes_is_refused(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    merged(tmp_path, [rows_of(IDS)], IDS)
    for missing in ("nothing.parquet", "nothing", "state"):
        with pytest.raises(
            FileNotFoundError,
            match=rf"no outcomes at {tmp_path}/{missing}; give a Parquet file or a folder",
        ):
            read_outcomes(f"{tmp_path}/{missing}")
    storage.write("text/a.parquet", b"not a table")
    with pytest.raises(ValueError, match=r"text/a\.parquet is no Parquet file \("):
        read_outcomes(f"{tmp_path}/text")
    storage.write("other/a.parquet", parquet_bytes(pa.table({"x": [1], "label": [2]})))
    with pytest.raises(
        ValueError,
        match=(
            r"other/a\.parquet lacks the columns attack, restart, image_id, clean_prediction, "
            r".*robust; give outcomes"
        ),
    ):
        read_outcomes(f"{tmp_path}/other/a.parquet")
    for name in ("a", "b"):
        storage.write(f"twice/{name}.parquet", parquet_bytes(rows_of(IDS[:2])))
    with pytest.raises(
        ValueError,
        match=(
            r"holds image_id 7 twice for attack apgd-ce-100, restart 0 \(8 rows are doubled\); "
            r"give one file"
        ),
    ):
        read_outcomes(f"{tmp_path}/twice")
    storage.write("mixed/a.parquet", storage.read("outcomes/m.parquet"))
    storage.write("mixed/b.parquet", parquet_bytes(rows_of(IDS + 1)))
    with pytest.raises(
        ValueError, match=r"mixed holds outcomes of several evaluations \(a\.parquet, b\.parquet\)"
    ):
        read_outcomes(f"{tmp_path}/mixed")


STATUS = """
def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

def peak_above(start):
    return status("VmHWM") - start

def forget_the_peak():
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
"""
# The system's allocator, because Arrow's own keeps some 30 MB for later; one heap for all threads,
# because what many heaps hold depends on which thread did what.
STEADY_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
MEASURE = """
import json, sys
import pyarrow as pa, pyarrow.parquet as pq
import numpy as np
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.records.store import Record, Records
from sat_ray.storage.store import Storage

records = Records(Storage.at(sys.argv[1]))
parts = [Record(**part) for part in json.load(open(sys.argv[2]))]
# imports and thread pools are not the merge
merge_outcomes(parts[:2], np.arange(1000), records, name="warm-up")
forget_the_peak()
start, found = status("VmRSS"), {}
for model in range(2):
    merge_outcomes(parts, np.arange(50_000), records, name=f"model-{model}")
    found[f"after {model + 1}"] = peak_above(start)
paths = [records.storage.full(part.payload["path"]) for part in parts]
held = pa.concat_tables([pq.read_table(path) for path in paths])
found["table"], found["held"] = held.nbytes / 2**20, peak_above(start)
print(json.dumps(found))
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_the_merge_holds_a_small_part_of_the_table_and_many_models_do_not_add_up(
    tmp_path: Path,
) -> None:
    """50,000 images x 16 runs in 100 parts, two models; reading one model's table afterwards shows
    that the measure sees memory.
    """
    whole = rows_of(
        np.arange(50_000),
        groups=[
            (attack, restart)
            for attack in ("apgd-ce-100", "apgd-t-dlr-100")
            for restart in range(8)
        ],
    )
    chosen = [
        pa.concat_tables([whole.slice(run * 50_000 + part * 500, 500) for run in range(16)])
        for part in range(100)
    ]
    parts = written(Storage.at(tmp_path), chosen)
    (tmp_path / "parts.json").write_text(json.dumps([vars(part) for part in parts]))
    command = [sys.executable, "-c", STATUS + MEASURE, str(tmp_path), str(tmp_path / "parts.json")]
    environment = os.environ | STEADY_MEMORY
    found = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    )
    assert found["table"] > 40
    assert found["after 1"] < found["table"] / 3
    assert found["after 2"] < found["after 1"] + found["table"] / 10
    assert found["held"] > found["table"] * 0.9, "the measure does not see memory"
    assert pq.read_table(tmp_path / "outcomes" / "model-1.parquet").equals(whole)


MANY = """
import json, sys, time
import numpy as np
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.tasks import EVALUATE
from sat_ray.sweep.records.store import Records
from sat_ray.storage.store import Storage

found = {}
for name in ("few", "few", "many"):  # the first time warms up
    place = f"{sys.argv[1]}/{name}"
    records, count = Records(Storage.at(place)), len(Records(Storage.at(place)).keys(EVALUATE))
    forget_the_peak()
    start, began = status("VmRSS"), time.process_time()
    merge_outcomes(records.each(EVALUATE), np.arange(count), records, name="m")
    seconds = (time.process_time() - began) / count
    found[name] = {"seconds": seconds, "mib": peak_above(start), "count": count}
held = list(records.each(EVALUATE))
found["held"] = peak_above(start)
print(json.dumps(found))
"""


def commit_shards(folder: Path, count: int) -> None:
    """Leave what an evaluation of `count` images, each a shard of its own, has left behind; not
    synced to the disk, which takes longest.
    """
    storage, whole = Storage.at(folder), rows_of(np.arange(count), groups=GROUPS[:2])
    code = {f"sat_ray.module_{number}": f"{number:016x}" for number in range(70)}
    for place in ("state/parts", "state/evaluate"):
        (folder / place).mkdir(parents=True)
    for number in range(count):
        data = parquet_bytes(
            pa.concat_tables([whole.slice(run * count + number, 1) for run in range(2)])
        )
        path = f"state/parts/{number}.parquet"
        record = Record(
            stage="evaluate",
            key=f"{number:032x}",
            **filled(
                EVALUATE,
                {"name": "m", "path": path, "sha256": sha256(data)},
                INPUTS | {"rows": [number, number + 1]},
            ),
            code=code,
            created=float(number),
            seconds=1.0,
        )
        Path(storage.full(path)).write_bytes(data)
        Path(storage.full(f"state/evaluate/{record.key}.json")).write_text(
            json.dumps(sealed(vars(record)))
        )


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_ten_times_the_shards_take_ten_times_as_long_and_no_more_memory(tmp_path: Path) -> None:
    """Processor time, which a busy machine stretches least; holding the records afterwards shows
    that the measure sees memory.
    """
    for name, count in (("few", 150), ("many", 1500)):
        commit_shards(tmp_path / name, count)
    command = [sys.executable, "-c", STATUS + MANY, str(tmp_path)]
    environment = os.environ | STEADY_MEMORY
    found = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    )
    few, many = found["few"], found["many"]
    assert (few["count"], many["count"]) == (150, 1500)
    assert many["seconds"] < 4 * few["seconds"]  # of a shard; ten times, were it quadratic
    assert many["mib"] < few["mib"] + 4 < found["held"] - 10, found
    assert pq.read_table(tmp_path / "many" / "outcomes" / "m.parquet").num_rows == 2 * 1500
