"""Reading prepared shards: every one is checked against the manifest when it is read."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sat_ray.data.shards.manifest import REMEDY, CorruptShardError, read_manifest
from sat_ray.data.shards.parquet import as_split, check_shape
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage

VERIFIED_BYTES = 256 * 1024**2  # about a second of reading and hashing


def read_split(storage: Storage, split: str) -> Split:
    """Load one split into memory, checking every shard against the manifest.

    Raises CorruptShardError naming the shard and what to do.
    """
    manifest = read_manifest(storage)
    return as_split(
        [read_shard(storage, shard) for shard in manifest["shards"] if shard["split"] == split],
        manifest["shape"],
    )


def read_rows(storage: Storage, split: str, rows: Tensor) -> Split:
    """Load some rows of a split, reading the shards that hold them and no others.

    rows: (N,) int64, ascending, at least one.

    Raises CorruptShardError as `read_split` does.
    """
    manifest = read_manifest(storage)
    parts = []
    first = 0
    for shard in manifest["shards"]:
        if shard["split"] == split:
            inside = rows[(rows >= first) & (rows < first + shard["rows"])] - first
            first += shard["rows"]
            if len(inside):
                parts.append(read_shard(storage, shard).take(inside.numpy()))
    return as_split(parts, manifest["shape"])


def image_ids(storage: Storage, split: str) -> Tensor:
    """Return the image ids of a split, (N,) int64, in the order of its rows.

    One shard at a time is in memory.
    """
    return _column(storage, split, "image_id")


def labels(storage: Storage, split: str) -> Tensor:
    """Return the labels of a split, (N,) int64, as `image_ids` does."""
    return _column(storage, split, "label")


def _column(storage: Storage, split: str, name: str) -> Tensor:
    shards = [shard for shard in read_manifest(storage)["shards"] if shard["split"] == split]
    values = np.concatenate(
        [read_shard(storage, shard, columns=[name])[name].to_numpy() for shard in shards]
    )
    return torch.from_numpy(values.astype(np.int64))


def read_shard(
    storage: Storage, shard: dict[str, Any], *, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read one shard and check its sha256.

    shard: its entry in the manifest; raises CorruptShardError naming the shard and what to do.
    """
    try:
        data = storage.read(shard["file"])
    except FileNotFoundError:
        raise _missing(storage, shard) from None
    found = hashlib.sha256(data).hexdigest()
    if found != shard["sha256"]:
        raise CorruptShardError(
            f"shard {storage.uri}/{shard['file']} has sha256 {found[:12]}, the manifest says "
            f"{shard['sha256'][:12]}: damaged; {REMEDY}"
        )
    table = pq.read_table(io.BytesIO(data), columns=columns)
    if len(table) != shard["rows"]:
        raise CorruptShardError(
            f"shard {storage.uri}/{shard['file']} has {len(table)} rows, the manifest says "
            f"{shard['rows']}; {REMEDY}"
        )
    return table


def verify(storage: Storage) -> None:
    """Check a dataset against its manifest before work begins.

    Raises CorruptShardError naming the first bad shard.

    Up to VERIFIED_BYTES every checksum is computed; of more, only sizes are compared, since a shard
    is checked whenever it is read.
    """
    manifest = read_manifest(storage)
    shards = manifest["shards"]
    if sum(shard["bytes"] for shard in shards) <= VERIFIED_BYTES:
        for shard in shards:
            check_shape(
                read_shard(storage, shard), manifest["shape"], where=storage.full(shard["file"])
            )
        return
    sizes = storage.sizes("")
    for shard in shards:
        if shard["file"] not in sizes:
            raise _missing(storage, shard)
        if (size := sizes[shard["file"]]) != shard["bytes"]:
            raise CorruptShardError(
                f"shard {storage.uri}/{shard['file']} has {size} bytes, the manifest says "
                f"{shard['bytes']}: damaged; {REMEDY}"
            )


def _missing(storage: Storage, shard: dict[str, Any]) -> CorruptShardError:
    return CorruptShardError(f"shard {storage.uri}/{shard['file']} is missing; {REMEDY}")
