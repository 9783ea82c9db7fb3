"""Datasets as checksummed Parquet shards with a manifest, the same on a local disk and on S3."""

import hashlib
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sat_ray.data.sources import Raw, Source
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


def _shard_bytes(raw: Raw, ids: np.ndarray) -> bytes:
    flat = raw.images[ids].reshape(len(ids), -1)
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(flat.shape[1]), len(ids), [None, pa.py_buffer(np.ascontiguousarray(flat))])
    table = pa.table({"image_id": ids, "label": raw.labels[ids].astype(np.int32), "image": images})
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write_dataset(source: Source, storage: Storage, *, rows_per_shard: int) -> dict[str, Any]:
    """Write every split of a dataset as shards, the manifest last, and return the manifest."""
    raw = source.read()
    splits = split_by_hash(source.name, len(raw.labels), test=source.test, val=source.val)
    shards = []
    for split in SPLITS:
        ids = splits[split]
        for number, first in enumerate(range(0, len(ids), rows_per_shard)):
            data = _shard_bytes(raw, part := ids[first : first + rows_per_shard])
            name = f"{split}-{number:05d}.parquet"
            storage.write(name, data)
            shards.append({"file": name, "split": split, "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()})
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


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Return the content hash of a dataset: it covers every shard's checksum."""
    return hashlib.sha256(json_bytes(manifest)).hexdigest()


def read_split(storage: Storage, split: str) -> Split:
    """Load one split into memory, checking every shard against the manifest.

    Raises CorruptShardError naming the shard and what to do.
    """
    manifest = storage.read_json(MANIFEST)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CorruptShardError(
            f"{storage.uri}/{MANIFEST} has schema version {manifest.get('schema_version')}; this version reads {SCHEMA_VERSION}"
        )
    tables = [_read_shard(storage, shard) for shard in manifest["shards"] if shard["split"] == split]
    table = pa.concat_tables(tables).combine_chunks()
    column = table["image"].chunk(0)
    flat = np.frombuffer(column.buffers()[1], dtype=np.uint8)[: len(table) * column.type.byte_width]
    return Split(
        torch.from_numpy(flat.reshape(len(table), *manifest["shape"]).copy()),
        torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["image_id"].to_numpy().astype(np.int64)),
    )


def _read_shard(storage: Storage, shard: dict[str, Any]) -> pa.Table:
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
    return pq.read_table(io.BytesIO(data))


def verify(storage: Storage) -> None:
    """Check every shard of a dataset against its manifest; CorruptShardError names the first bad one."""
    for shard in storage.read_json(MANIFEST)["shards"]:
        _read_shard(storage, shard)
