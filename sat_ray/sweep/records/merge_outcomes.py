"""Merge the shards of a model's outcomes into one file, by an external sort.

One pass takes part by part, compares its bytes with its record and appends its rows to one spool file per
(attack, restart) on the local disk (TMPDIR). The next takes spool by spool, sorts by image id and writes the rows. So it holds one
compressed part, then the rows of one (attack, restart), however many shards, attacks and models there are; and the file depends on the
rows alone: sorted by attack, restart and image id, cut into row groups at the same places.
"""

import itertools
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sat_ray.evaluation.outcome_files import EVALUATION_KEY
from sat_ray.evaluation.outcomes import OUTCOME_SCHEMA
from sat_ray.sweep.records.store import SURVIVORS_OF, Record, Records
from sat_ray.utils.serialization import sha256

ROWS_AT_ONCE = 1 << 16  # of a part, while it is read
ROWS_AT_LEAST = (
    1 << 10
)  # in one piece of a spool: Arrow takes some kilobytes for each piece, in the file and in memory
ROWS_PER_GROUP = (
    1 << 17
)  # of the merged file; an (attack, restart) with more images has several row groups
REPEATING = [
    field.name for field in OUTCOME_SCHEMA if field.type in (pa.int32(), pa.string())
]  # floats and ids would only cost memory
PER_PART = ("rows", SURVIVORS_OF)  # inputs in which the parts of one evaluation differ
Ids = NDArray[np.int64]


def merge_outcomes(
    parts: Iterable[Record], expected_ids: Collection[int] | Ids, records: Records, *, name: str
) -> str:
    """Merge a model's shards into outcomes/<name>.parquet and return its path, relative to the storage.

    expected_ids: of the whole split, each once. The file's metadata says what was evaluated (`outcome_files.evaluation_of`). Raises
    ValueError if a part is not what its record says or belongs to another evaluation, or, naming ids, if the shards do not partition the
    split or a part holds an image twice; then nothing is written.
    """
    path = f"outcomes/{name}.parquet"
    with (
        tempfile.TemporaryDirectory(prefix="sat_ray-merge-") as folder,
        _Spools(Path(folder)) as spools,
    ):
        alike = _Alike(name)
        shards = [spools.add(_checked_batches(part, records)) for part in map(alike.checked, parts)]
        check_each_id_once(shards, expected_ids, name=name)
        merged = Path(folder) / "merged.parquet"
        schema = OUTCOME_SCHEMA.with_metadata(
            {EVALUATION_KEY: json.dumps(alike.inputs, sort_keys=True).encode()}
        )
        with pq.ParquetWriter(
            merged, schema, compression="zstd", use_dictionary=REPEATING
        ) as writer:
            for (attack, restart), rows in spools.sorted_groups():
                _check_no_image_twice(
                    rows, f"outcomes of {name}, attack {attack}, restart {restart}"
                )
                writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
        records.storage.write_file(path, merged)
    return path


def check_each_id_once(
    shards: Sequence[Collection[int] | Ids], expected: Collection[int] | Ids, *, name: str
) -> None:
    """Raise ValueError unless the shards, each a set of image ids, partition the expected ones."""
    union, times = np.unique(
        np.concatenate([_as_ids(()), *map(_as_ids, shards)]), return_counts=True
    )
    wanted, doubled = np.unique(_as_ids(expected)), union[times > 1]
    missing, foreign = (
        np.setdiff1d(wanted, union, assume_unique=True),
        np.setdiff1d(union, wanted, assume_unique=True),
    )
    if len(doubled) or len(missing) or len(foreign):
        found = (("doubled", doubled), ("missing", missing), ("foreign", foreign))
        raise ValueError(
            f"outcomes of {name}: "
            + ", ".join(f"{word} ids {ids[:5].tolist()}" for word, ids in found)
        )


class _Alike:
    """See that all parts belong to one evaluation. inputs: what determined all alike: of their records all but which rows."""

    def __init__(self, name: str) -> None:
        self.name, self.first, self.inputs = name, "", dict[str, Any]()

    def checked(self, part: Record) -> Record:
        """Return the part; ValueError where something else determined it than the first."""
        ours = {field: value for field, value in part.inputs.items() if field not in PER_PART}
        if not self.first:
            self.first, self.inputs = part.key, ours
        if ours != self.inputs:
            differing = sorted(
                field
                for field in ours.keys() | self.inputs.keys()
                if ours.get(field) != self.inputs.get(field)
            )
            raise ValueError(
                f"outcomes of {self.name}: parts {self.first} and {part.key} differ in {', '.join(differing)}; allowed: the same"
            )
        return part


def read_part(part: Record, records: Records) -> pa.Table:
    """Return the rows of one part, after its bytes were compared with its record."""
    return pa.Table.from_batches(_checked_batches(part, records), schema=OUTCOME_SCHEMA)


def _checked_batches(part: Record, records: Records) -> Iterator[pa.RecordBatch]:
    """Yield a part's rows, a bounded number at a time, after its bytes were compared with its record."""
    path = part.payload["path"]
    data = records.storage.read(path)
    if sha256(data) != part.payload["sha256"]:
        raise ValueError(
            f"outcomes {path} do not match their record; move {part.key} away from state/ and run again"
        )
    file = pq.ParquetFile(pa.BufferReader(data))
    if not file.schema_arrow.equals(OUTCOME_SCHEMA):
        raise ValueError(
            f"outcomes {path} have the columns {file.schema_arrow.names}; allowed: {OUTCOME_SCHEMA.names}"
        )
    yield from file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False)


class _Spools:
    """One Arrow file per (attack, restart) in a local folder, written in any order and read back sorted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[tuple[str, int], str] = {}
        self.writers: dict[tuple[str, int], pa.ipc.RecordBatchStreamWriter] = {}
        self.waiting: dict[
            tuple[str, int], pa.RecordBatch
        ] = {}  # rows too few for a piece of their own

    def __enter__(self) -> "_Spools":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def add(self, batches: Iterator[pa.RecordBatch]) -> Ids:
        """Append a part's rows to their spools and return the ids of its images, each once, ascending."""
        ids = _as_ids(())
        for batch in batches:
            ids = np.union1d(ids, batch["image_id"].to_numpy())
            for key, rows in _runs(batch):
                self._append(key, rows)
        return ids

    def sorted_groups(self) -> Iterator[tuple[tuple[str, int], pa.Table]]:
        """Yield ((attack, restart), its rows sorted by image id in one chunk) in order; nothing can be added any more."""
        self._close()
        for key in sorted(self.files):
            with pa.memory_map(self.files[key]) as spool:
                rows = pa.ipc.open_stream(spool).read_all().sort_by("image_id").combine_chunks()
            yield key, rows

    def _append(self, key: tuple[str, int], rows: pa.RecordBatch) -> None:
        if key in self.waiting:
            rows = pa.concat_batches([self.waiting.pop(key), rows])
        if len(rows) < ROWS_AT_LEAST:
            self.waiting[key] = rows
        else:
            self._writer(key).write_batch(rows)

    def _writer(self, key: tuple[str, int]) -> pa.ipc.RecordBatchStreamWriter:
        if key not in self.writers:
            self.files[key] = str(self.folder / f"{len(self.files)}.arrow")
            self.writers[key] = pa.ipc.new_stream(self.files[key], OUTCOME_SCHEMA)
        return self.writers[key]

    def _close(self) -> None:
        while self.waiting:
            key, rows = self.waiting.popitem()
            self._writer(key).write_batch(rows)
        for writer in self.writers.values():
            writer.close()


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[tuple[str, int], pa.RecordBatch]]:
    """Yield ((attack, restart), rows) for every stretch of rows that share both; a sorted batch has one for each."""
    attack, restart = (
        batch["attack"].dictionary_encode().indices.to_numpy(),
        batch["restart"].to_numpy(),
    )
    changes = np.flatnonzero((np.diff(attack) != 0) | (np.diff(restart) != 0)) + 1
    for first, last in itertools.pairwise([0, *changes.tolist(), len(batch)] if len(batch) else []):
        yield (
            (batch["attack"][first].as_py(), batch["restart"][first].as_py()),
            batch.slice(first, last - first),
        )


def _check_no_image_twice(rows: pa.Table, what: str) -> None:
    """Raise ValueError if rows sorted by image id hold one twice."""
    ids = rows["image_id"].to_numpy()
    if len(doubled := np.unique(ids[1:][ids[1:] == ids[:-1]])):
        raise ValueError(f"{what}: doubled ids {doubled[:5].tolist()}; allowed: each image once")


def _as_ids(ids: Collection[int] | Ids) -> Ids:
    return ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.int64, count=len(ids))
