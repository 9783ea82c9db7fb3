"""Writing a dataset as checksummed Parquet shards with a manifest, on a local disk or on S3."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from sat_ray.data.images import Storing
from sat_ray.data.pixels import too_dark
from sat_ray.data.shards.changes import note_source, stamped
from sat_ray.data.shards.manifest import ENTRY, MANIFEST, SCHEMA_VERSION
from sat_ray.data.shards.parquet import shard_bytes
from sat_ray.data.shards.test_images import TestImages
from sat_ray.data.shards.writer import PLAN, ShardTask, shard_tasks, write_shard
from sat_ray.data.sources.base import PATH, Listing, Source
from sat_ray.data.split_ids import SPLITS
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage

Part = dict[str, Any]
Block = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels, ids


def _write_shards(storage: Storage, split: str, blocks: Iterable[Block]) -> list[dict[str, Any]]:
    """Write each block as one shard of a split, and return their entries of the manifest.

    blocks: (images, labels, ids).
    """
    entries = []
    for number, (images, labels, ids) in enumerate(blocks):
        data = shard_bytes(images, labels, ids)
        name = f"{split}-{number:05d}.parquet"
        storage.write(name, data)
        digest = hashlib.sha256(data).hexdigest()
        entries.append(
            {"file": name, "split": split, "rows": len(ids), "bytes": len(data), "sha256": digest}
        )
    return entries


def write_dataset(
    source: Source,
    storage: Storage,
    *,
    rows_per_shard: int,
    path: str = "",
    download: bool = False,
    storing: Storing | None = None,
    corrupt_share: float = 0.0,
    enlarged_share: float = 0.0,
    test: TestImages | None = None,
    field: str = PATH,
    run: Callable[[Callable[[ShardTask], Part], Iterable[ShardTask]], Iterable[Part]] = map,
) -> dict[str, Any]:
    """Write every split of a dataset as shards, the manifest last, and return the manifest.

    What is written already is not done again.

    path: the folder that the source reads, if it reads one; download: fetch the official files
    where they are not there; storing: how images that come in files are stored; corrupt_share:
    share of them that may be unreadable, in [0, 1): those are left out and listed in the manifest;
    enlarged_share: share of them that may be smaller than they are stored, in [0, 1]; test: which
    test images are stored, and how, without compression whatever `storing` says; field: setting of
    the path, for messages. run: map, or what applies a function elsewhere and returns the results
    in order; it is given the shards of encoded images, while what is in memory is written from
    here. Raises ValueError naming images that cannot be read, are too small or differ in size,
    LayoutError where the folder is not as wanted.
    """
    found = source.open(path, download=download, field=field)
    storing = storing or Storing()
    if isinstance(found, Listing):
        found = stamped(found)
    test = test or TestImages()
    splits, chosen = test.chosen(source.splits(found), found)
    shards = sum(-(-len(ids) // rows_per_shard) for ids in splits.values())
    storage.write_json(PLAN, {"shards": shards})
    stored = dict.fromkeys(splits, storing) | {"test": test.storing(storing)}
    tasks = shard_tasks(found, splits, rows_per_shard=rows_per_shard, storing=stored)
    parts = list((run if source.encoded else map)(partial(write_shard, storage=storage), tasks))
    corrupt = [one for part in parts for one in part["corrupt"]]
    _check_corrupt(corrupt, len(found.labels), corrupt_share)
    enlarged = _check_enlarged(
        parts, len(found.labels), enlarged_share, image_size=storing.image_size
    )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "dataset": source.name,
        "class_names": list(found.class_names),
        **_described([part for part in parts if part["rows"]]),
        "encoding": storing.encoding,
        "corrupt": corrupt,
        **({"enlarged": enlarged} if enlarged else {}),
        **test.described(storing, chosen),
    }
    note_source(source, found, storage)
    storage.write_json(MANIFEST, sealed(manifest))
    return manifest


def _described(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what a manifest says about the shards of these parts.

    Raises ValueError where nothing can be trained on the images.
    """
    _check_range(parts)
    shape = _one_shape(parts)
    moments = _mean_and_std([part for part in parts if part["split"] == "train"])
    _check_spread(moments)
    return {
        "shape": shape,
        "splits": {
            split: sum(part["rows"] for part in parts if part["split"] == split) for split in SPLITS
        },
        **moments,
        "shards": [{key: part[key] for key in ENTRY} for part in parts],
    }


def _check_range(parts: Sequence[Part]) -> None:
    """Refuse images whose every pixel is 0 or 1: only these are their own squares."""
    if parts and all(part["sum"] == part["sum_of_squares"] for part in parts):
        raise ValueError(too_dark(1, what="the images"))


def _check_spread(moments: dict[str, list[float]]) -> None:
    """Refuse a channel that has the same value in all training images: it cannot be standardised.

    Only the sums over all training images can show that, so it is known when the last shard is
    written. The check comes before the manifest is written, so that no dataset is committed on
    which nothing can be trained.
    """
    for channel, (mean, std) in enumerate(zip(moments["mean"], moments["std"], strict=True)):
        if not std > 0:
            raise ValueError(
                f"channel {channel} of the training images must vary, got {round(mean * 255)} in "
                "every pixel of all images, so it cannot be standardised; leave the channel out "
                "(an image's alpha channel, for example), or store gray images as one channel"
            )


def _check_corrupt(corrupt: Sequence[dict[str, Any]], count: int, share: float) -> None:
    if len(corrupt) > share * count:
        shown = "; ".join(f"{one['image']} ({one['reason']})" for one in corrupt[:3])
        more = f" and {len(corrupt) - 3} more" if len(corrupt) > 3 else ""
        raise ValueError(
            f"{len(corrupt)} of {count} images cannot be read: {shown}{more}; data.corrupt_share "
            f"allows a share of {share:g}, {int(share * count)} images; restore the files, or give "
            "a larger share"
        )


def _check_enlarged(parts: Sequence[Part], count: int, share: float, *, image_size: int) -> int:
    """Return how many images were smaller than they are stored.

    Raises ValueError naming the smallest where they are too many.
    """
    found = [part["enlarged"] for part in parts if part.get("enlarged", {}).get("count")]
    enlarged: int = sum(one["count"] for one in found)
    if enlarged > share * count:
        side, name, size = min(one["smallest"] for one in found)
        raise ValueError(
            f"{enlarged} of {count} images are smaller than data.image_size, {image_size}, the "
            f"smallest is {name} of {size}; data.enlarged_share allows a share of {share:g}, "
            f"{int(share * count)} images; give --data.image-size {side}, or a larger share"
        )
    return enlarged


def _one_shape(parts: Sequence[Part]) -> list[int]:
    shapes = {tuple(part["shape"]): part["file"] for part in parts}
    if len(shapes) != 1:
        shown = ", ".join(f"{w} x {h} in {file}" for (_, h, w), file in sorted(shapes.items())[:3])
        raise ValueError(f"images differ in size: {shown}; give --data.image-size N")
    return list(next(iter(shapes)))


def _mean_and_std(parts: Sequence[Part]) -> dict[str, list[float]]:
    """Return mean and standard deviation per channel, in [0, 1] pixels.

    They are computed from the exact sums of every part.
    """
    pixels = sum(part["pixels"] for part in parts)
    sums = [sum(column) for column in zip(*(part["sum"] for part in parts), strict=True)]
    squares = [
        sum(column) for column in zip(*(part["sum_of_squares"] for part in parts), strict=True)
    ]
    variances = [
        Fraction(q, pixels) - Fraction(s, pixels) ** 2 for s, q in zip(sums, squares, strict=True)
    ]
    return {
        "mean": [round(s / pixels / 255, 6) for s in sums],
        "std": [round(math.sqrt(v) / 255, 6) for v in variances],
    }


def write_test_split(
    blocks: Iterable[Block],
    storage: Storage,
    *,
    name: str,
    shape: Sequence[int],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Write a dataset that has only a test split, and return its manifest.

    One block at a time is in memory; the manifest is written last.

    blocks: (images (N, C, H, W) uint8, labels (N,), ids (N,)), one shard each; shape: (C, H, W);
    class_names: none where unknown.
    """
    shards = _write_shards(storage, "test", _bright_enough(blocks, what=f"data {name}"))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "dataset": name,
        "class_names": list(class_names),
        "shape": list(shape),
        "splits": {"test": sum(shard["rows"] for shard in shards)},
        "shards": shards,
    }
    storage.write_json(MANIFEST, sealed(manifest))
    return manifest


def _bright_enough(blocks: Iterable[Block], *, what: str) -> Iterator[Block]:
    """Yield blocks, and raise ValueError behind the last where no pixel of any was above 1."""
    brightest = 0
    for block in blocks:
        brightest = max(brightest, int(block[0].max()))
        yield block
    if brightest <= 1:
        raise ValueError(too_dark(brightest, what=what))
