"""Merge the shards of a model's outcomes into one file, by an external sort.

The first pass reads part by part. It compares the bytes of a part with its record and appends its
rows to one spool file per (attack, restart). The second pass reads spool by spool, sorts by image
id and writes the rows. Memory holds one compressed part, then the rows of one (attack, restart),
however many shards, attacks and models there are. The merged file depends on the rows alone: they
are sorted by attack, restart and image id, and row groups are cut at the same places.

The spools are temporary files without a name on the local disk (TMPDIR): the kernel removes them
with the process, however it ends.
"""

import itertools
import json
import mmap
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sat_ray.evaluation.outcome_files import EVALUATION_KEY
from sat_ray.evaluation.outcomes import OUTCOME_SCHEMA
from sat_ray.sweep.records.store import STATE, SURVIVORS_OF, Record, Records
from sat_ray.utils.serialization import sha256

# Rows of a part that are read at once.
ROWS_AT_ONCE = 1 << 16
# Fewest rows in one piece of a spool: Arrow takes some kilobytes for each piece, on disk and in
# memory.
ROWS_AT_LEAST = 1 << 10
# Rows of the merged file: an (attack, restart) with more images has several row groups.
ROWS_PER_GROUP = 1 << 17
# Columns with few different values; a dictionary of floats or ids would only cost memory.
REPEATING = [field.name for field in OUTCOME_SCHEMA if field.type in (pa.int32(), pa.string())]
# Inputs that differ between the parts of one evaluation.
PER_PART = ("rows", SURVIVORS_OF)
Ids = NDArray[np.int64]
Key = tuple[str, int]
"""An attack's name and the number of a restart."""


def merge_outcomes(
    parts: Iterable[Record], expected_ids: Collection[int] | Ids, records: Records, *, name: str
) -> str:
    """Merge a model's shards into outcomes/<name>.parquet and return its path in the storage.

    expected_ids: of the whole split, each once. The file's metadata says what was evaluated
    (`outcome_files.evaluation_of`). Raises ValueError if a part does not match its record or
    belongs to another evaluation, or, with the ids, if the shards do not partition the split or a
    part holds an image twice; then nothing is written.
    """
    path = f"outcomes/{name}.parquet"
    with _Spools() as spools, tempfile.TemporaryFile() as merged:
        alike = _SameEvaluation(records)
        shards = [spools.add(_checked_batches(part, records)) for part in map(alike.checked, parts)]
        check_each_id_once(shards, expected_ids, name=name)
        _write_sorted(merged, spools, inputs=alike.inputs, name=name)
        records.storage.write_file(path, merged)
    return path


def _write_sorted(
    target: BinaryIO, spools: "_Spools", *, inputs: dict[str, Any], name: str
) -> None:
    about = {EVALUATION_KEY: json.dumps(inputs, sort_keys=True).encode()}
    schema = OUTCOME_SCHEMA.with_metadata(about)
    with pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=REPEATING) as writer:
        for (attack, restart), rows in spools.sorted_groups():
            _check_no_image_twice(rows, f"outcomes of {name}, attack {attack}, restart {restart}")
            writer.write_table(rows, row_group_size=ROWS_PER_GROUP)


def check_each_id_once(
    shards: Sequence[Collection[int] | Ids], expected: Collection[int] | Ids, *, name: str
) -> None:
    """Raise ValueError unless the shards, each a set of image ids, partition the expected ones."""
    given = np.concatenate([_as_ids(()), *map(_as_ids, shards)])
    union, times = np.unique(given, return_counts=True)
    wanted = np.unique(_as_ids(expected))
    found = {
        "doubled": union[times > 1],
        "missing": np.setdiff1d(wanted, union, assume_unique=True),
        "unexpected": np.setdiff1d(union, wanted, assume_unique=True),
    }
    if any(map(len, found.values())):
        listed = (f"{word} ids {ids[:5].tolist()}" for word, ids in found.items())
        raise ValueError(f"outcomes of {name}: {', '.join(listed)}")


class _SameEvaluation:
    """Check that all parts belong to one evaluation.

    inputs: what determined the parts; it leaves out which rows each part holds.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self.first = ""
        self.inputs: dict[str, Any] = {}

    def checked(self, part: Record) -> Record:
        """Return the part; raise ValueError where its inputs differ from those of the first."""
        ours = {field: value for field, value in part.inputs.items() if field not in PER_PART}
        if not self.first:
            self.first = _place(part, self.records)
            self.inputs = ours
        if ours != self.inputs:
            fields = sorted(ours.keys() | self.inputs.keys())
            differing = [field for field in fields if ours.get(field) != self.inputs.get(field)]
            raise ValueError(
                f"records {self.first} and {_place(part, self.records)} are of one model and must "
                f"have the same inputs, they differ in {', '.join(differing)}; move the one that "
                "was changed away and run again"
            )
        return part


def read_part(part: Record, records: Records) -> pa.Table:
    """Return the rows of one part, after its bytes were compared with its record."""
    return pa.Table.from_batches(_checked_batches(part, records), schema=OUTCOME_SCHEMA)


def _checked_batches(part: Record, records: Records) -> Iterator[pa.RecordBatch]:
    """Yield a part's rows in batches, after its bytes were compared with its record."""
    path = part.payload["path"]
    try:
        data = records.storage.read(path)
    except FileNotFoundError:
        place = records.storage.full(path)
        raise ValueError(
            f"outcomes {place} are gone; start again what made them, which attacks these images "
            "again"
        ) from None
    if sha256(data) != part.payload["sha256"]:
        raise _without_outcomes(part, records, "do not match their record")
    file = pq.ParquetFile(pa.BufferReader(data))
    if not file.schema_arrow.equals(OUTCOME_SCHEMA):
        columns = f"must have the columns {OUTCOME_SCHEMA.names}, got {file.schema_arrow.names}"
        raise _without_outcomes(part, records, columns)
    yield from file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False)


def _without_outcomes(part: Record, records: Records, reason: str) -> ValueError:
    """Return the error of a record whose outcomes cannot be used."""
    place = records.storage.full(part.payload["path"])
    return ValueError(f"outcomes {place} {reason}; move {_place(part, records)} away and run again")


def _place(part: Record, records: Records) -> str:
    """Return the file of a record."""
    return records.storage.full(f"{STATE}/{part.stage}/{part.key}.json")


class _Spools:
    """One temporary Arrow file per (attack, restart), written in any order and read back sorted."""

    def __init__(self) -> None:
        self.open = ExitStack()
        self.files: dict[Key, BinaryIO] = {}
        self.writers: dict[Key, pa.ipc.RecordBatchStreamWriter] = {}
        # Rows that are too few for a piece of their own.
        self.waiting: dict[Key, pa.RecordBatch] = {}

    def __enter__(self) -> "_Spools":
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.close()

    def add(self, batches: Iterator[pa.RecordBatch]) -> Ids:
        """Append a part's rows to their spools; return the ids of its images, each once, sorted."""
        ids = _as_ids(())
        for batch in batches:
            ids = np.union1d(ids, batch["image_id"].to_numpy())
            for key, rows in _runs(batch):
                self._append(key, rows)
        return ids

    def sorted_groups(self) -> Iterator[tuple[Key, pa.Table]]:
        """Yield ((attack, restart), rows sorted by image id in one chunk); call it after `add`."""
        self._finish()
        for key in sorted(self.files):
            yield key, _sorted_rows(self.files[key])

    def _append(self, key: Key, rows: pa.RecordBatch) -> None:
        if key in self.waiting:
            rows = pa.concat_batches([self.waiting.pop(key), rows])
        if len(rows) < ROWS_AT_LEAST:
            self.waiting[key] = rows
        else:
            self._writer(key).write_batch(rows)

    def _writer(self, key: Key) -> pa.ipc.RecordBatchStreamWriter:
        if key not in self.writers:
            self.files[key] = self.open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by `open`
            self.writers[key] = pa.ipc.new_stream(self.files[key], OUTCOME_SCHEMA)
        return self.writers[key]

    def _finish(self) -> None:
        for key, rows in self.waiting.items():
            self._writer(key).write_batch(rows)
        self.waiting.clear()
        for writer in self.writers.values():
            writer.close()


def _sorted_rows(spool: BinaryIO) -> pa.Table:
    """Return the rows of a spool sorted by image id; the unsorted ones stay on the disk."""
    spool.flush()
    mapped = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)
    rows = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    return rows.sort_by("image_id").combine_chunks()


def _runs(batch: pa.RecordBatch) -> Iterator[tuple[Key, pa.RecordBatch]]:
    """Yield ((attack, restart), rows) for every stretch of rows that share both."""
    attack = batch["attack"].dictionary_encode().indices.to_numpy()
    restart = batch["restart"].to_numpy()
    changes = np.flatnonzero((np.diff(attack) != 0) | (np.diff(restart) != 0)) + 1
    bounds = [0, *changes.tolist(), len(batch)] if len(batch) else []
    for first, last in itertools.pairwise(bounds):
        key = (batch["attack"][first].as_py(), batch["restart"][first].as_py())
        yield key, batch.slice(first, last - first)


def _check_no_image_twice(rows: pa.Table, what: str) -> None:
    """Raise ValueError if rows sorted by image id hold an image twice."""
    ids = rows["image_id"].to_numpy()
    if len(doubled := np.unique(ids[1:][ids[1:] == ids[:-1]])):
        raise ValueError(f"{what} must hold each image once, doubled ids {doubled[:5].tolist()}")


def _as_ids(ids: Collection[int] | Ids) -> Ids:
    return ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.int64, count=len(ids))
