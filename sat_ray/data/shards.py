"""Datasets as checksummed Parquet shards with a manifest, the same on a local disk and on S3."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sat_ray.data.sources import Source
from sat_ray.data.split import SPLITS, Split
from sat_ray.storage import Storage, json_bytes

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


class CorruptShardError(ValueError):
    """A shard is missing or is not what the manifest says."""


def split_by_hash(name: str, count: int, *, test: int, val: int) -> dict[str, np.ndarray]:
    """Assign image ids to splits by the order of sha256("name:id"): fixed for ever, independent of labels and machine."""
    if not 0 < test + val < count:
        raise ValueError(f"test {test} + val {val} images; allowed: fewer than the {count} of {name}")
    order = sorted(range(count), key=lambda image_id: hashlib.sha256(f"{name}:{image_id}".encode()).digest())
    ids = np.array(order, dtype=np.int64)
    return {"test": np.sort(ids[:test]), "val": np.sort(ids[test : test + val]), "train": np.sort(ids[test + val :])}


def _shard_bytes(images: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> bytes:
    flat = np.ascontiguousarray(images.reshape(len(ids), -1))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(flat.shape[1]), len(ids), [None, pa.py_buffer(flat)])
    table = pa.table({"image_id": ids, "label": labels.astype(np.int32), "image": column})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _write_shards(storage: Storage, split: str, blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """Write each block (images, labels, ids) as one shard of a split; return their entries of the manifest."""
    entries = []
    for number, (images, labels, ids) in enumerate(blocks):
        data = _shard_bytes(images, labels, ids)
        name = f"{split}-{number:05d}.parquet"
        storage.write(name, data)
        entries.append({"file": name, "split": split, "rows": len(ids), "sha256": hashlib.sha256(data).hexdigest()})
    return entries


def write_dataset(source: Source, storage: Storage, *, rows_per_shard: int) -> dict[str, Any]:
    """Write every split of a dataset as shards, the manifest last, and return the manifest."""
    raw = source.read()
    splits = split_by_hash(source.name, len(raw.labels), test=source.test, val=source.val)
    shards = []
    for split in SPLITS:
        ids = splits[split]
        parts = (ids[first : first + rows_per_shard] for first in range(0, len(ids), rows_per_shard))
        shards += _write_shards(storage, split, ((raw.images[part], raw.labels[part], part) for part in parts))
    pixels = raw.images[splits["train"]].astype(np.float64) / 255
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "dataset": source.name,
        "class_names": list(raw.class_names),
        "shape": list(raw.images.shape[1:]),
        "splits": {split: len(ids) for split, ids in splits.items()},
        "mean": [round(float(v), 6) for v in pixels.mean(axis=(0, 2, 3))],
        "std": [round(float(v), 6) for v in pixels.std(axis=(0, 2, 3))],
        "shards": shards,
    }
    storage.write(MANIFEST, json_bytes(manifest))
    return manifest


def write_test_split(
    blocks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    storage: Storage,
    *,
    name: str,
    shape: Sequence[int],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Write a dataset that is a test split alone, one block in memory at a time, the manifest last; return the manifest.

    blocks: (images (N, C, H, W) uint8, labels (N,), ids (N,)), one shard each; shape: (C, H, W); class_names: none where unknown.
    """
    shards = _write_shards(storage, "test", blocks)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "dataset": name,
        "class_names": list(class_names),
        "shape": list(shape),
        "splits": {"test": sum(shard["rows"] for shard in shards)},
        "shards": shards,
    }
    storage.write(MANIFEST, json_bytes(manifest))
    return manifest


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Return the content hash of a dataset: it covers every shard's checksum."""
    return hashlib.sha256(json_bytes(manifest)).hexdigest()


def _read_manifest(storage: Storage) -> dict[str, Any]:
    manifest: dict[str, Any] = storage.read_json(MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CorruptShardError(
            f"{storage.uri}/{MANIFEST} has schema version {manifest.get('schema_version')}; this version reads {SCHEMA_VERSION}"
        )
    return manifest


def _as_split(tables: list[pa.Table], shape: Sequence[int]) -> Split:
    table = pa.concat_tables(tables).combine_chunks()
    column = table["image"].chunk(0)
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8)[: len(table) * column.type.byte_width]
    return Split(
        torch.from_numpy(flat.reshape(len(table), *shape).copy()),
        torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["image_id"].to_numpy().astype(np.int64)),
    )


def read_split(storage: Storage, split: str) -> Split:
    """Load one split into memory, checking every shard against the manifest.

    Raises CorruptShardError naming the shard and what to do.
    """
    manifest = _read_manifest(storage)
    return _as_split([_read_shard(storage, shard) for shard in manifest["shards"] if shard["split"] == split], manifest["shape"])


def read_rows(storage: Storage, split: str, rows: Tensor) -> Split:
    """Load some rows of a split, reading the shards that hold them and no others. rows: (N,) int64, ascending, at least one.

    Raises CorruptShardError as `read_split` does.
    """
    manifest, parts, first = _read_manifest(storage), [], 0
    for shard in manifest["shards"]:
        if shard["split"] == split:
            inside = rows[(rows >= first) & (rows < first + shard["rows"])] - first
            first += shard["rows"]
            if len(inside):
                parts.append(_read_shard(storage, shard).take(inside.numpy()))
    return _as_split(parts, manifest["shape"])


def _read_shard(storage: Storage, shard: dict[str, Any], *, columns: Sequence[str] | None = None) -> pa.Table:
    remedy = "restore the file, or move the dataset folder away and run pipelines/prepare.py again"
    try:
        data = storage.read(shard["file"])
    except FileNotFoundError:
        raise CorruptShardError(f"shard {storage.uri}/{shard['file']} is missing; {remedy}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != shard["sha256"]:
        raise CorruptShardError(
            f"shard {storage.uri}/{shard['file']} has sha256 {found[:12]}, the manifest says {shard['sha256'][:12]}: damaged; {remedy}"
        )
    return pq.read_table(io.BytesIO(data), columns=columns)


def verify(storage: Storage) -> None:
    """Check every shard of a dataset against its manifest; CorruptShardError names the first bad one."""
    for shard in storage.read_json(MANIFEST)["shards"]:
        _read_shard(storage, shard)
