"""One shard as bytes: a Parquet table of image ids, labels and images.

The images are either uint8 of one shape or JPEG files.
"""

import io
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sat_ray.data.images import decoded
from sat_ray.data.split import Split


def shard_bytes(images: np.ndarray | Sequence[bytes], labels: np.ndarray, ids: np.ndarray) -> bytes:
    """Spell a shard.

    images: (N, C, H, W) uint8 or N JPEG files; labels: (N,) whole numbers within int32; ids: (N,)
    within int64.

    Raises ValueError for a label or an id beyond that.
    """
    if isinstance(images, np.ndarray):
        flat = np.ascontiguousarray(images.reshape(len(ids), -1))
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(flat.shape[1]), len(ids), [None, pa.py_buffer(flat)]
        )
    else:
        column = pa.array(images, type=pa.binary())
    table = pa.table(
        {
            "image_id": _kept(ids, np.int64, "image_ids"),
            "label": _kept(labels, np.int32, "labels"),
            "image": column,
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _kept(values: np.ndarray, kind: type[np.signedinteger[Any]], name: str) -> np.ndarray:
    """Return whole numbers as another type; ValueError where one does not fit.

    numpy alone would wrap around silently.
    """
    limits = np.iinfo(kind)
    if len(values) and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
        raise ValueError(
            f"{name} must lie in {limits.min} to {limits.max}, got {values.min()} to {values.max()}"
        )
    return values.astype(kind)


def check_shape(table: pa.Table, shape: Sequence[int], *, where: str) -> None:
    """Raise ValueError where a shard's images cannot have this shape, (C, H, W).

    Of JPEG files the first is decoded.
    """
    column = table["image"]
    if pa.types.is_fixed_size_binary(column.type):
        _require_shape(f"{column.type.byte_width} bytes", f"{prod(shape)} bytes", shape, where)
    elif len(column):
        _require_shape(decoded(column[0].as_py()).shape, tuple(shape), shape, where)


def _require_shape(found: object, needed: object, shape: Sequence[int], where: str) -> None:
    if found != needed:
        raise ValueError(
            f"an image of {where} must have {needed}, as the manifest's shape {list(shape)} says, "
            f"got {found}"
        )


def as_split(tables: Sequence[pa.Table], shape: Sequence[int]) -> Split:
    """Turn tables of shards into a split in memory, and decode JPEG files.

    shape: (C, H, W). Raises ValueError where images have another.
    """
    table = pa.concat_tables(tables).combine_chunks()
    column = table["image"].chunk(0)
    if pa.types.is_fixed_size_binary(column.type):
        check_shape(table, shape, where="a shard")
        flat = np.frombuffer(column.buffers()[1], dtype=np.uint8)[
            : len(table) * column.type.byte_width
        ]
        images = flat.reshape(len(table), *shape).copy()
    else:
        images = np.empty((len(table), *shape), dtype=np.uint8)
        for row, data in enumerate(column):
            pixels = decoded(data.as_py())
            _require_shape(
                pixels.shape, images.shape[1:], shape, "a shard"
            )  # numpy would repeat a smaller one
            images[row] = pixels
    return Split(
        torch.from_numpy(images),
        torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        torch.from_numpy(table["image_id"].to_numpy().astype(np.int64)),
    )
