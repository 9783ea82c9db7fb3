"""Writing one shard: an independent task that runs anywhere, in any order, and never twice.

A shard's file is written first and its part, parts/FILE.json, last. The part says from which images
and how the shard was made, so a preparation that was stopped goes on where it was, and one of other
images or settings starts anew.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sat_ray.data.images import CorruptImageError, Storing, opened
from sat_ray.data.shards.parquet import shard_bytes
from sat_ray.data.sources.base import Listing, Place, Raw
from sat_ray.data.split_ids import SPLITS
from sat_ray.storage.sealed import read_sealed, sealed
from sat_ray.storage.store import Storage
from sat_ray.utils.names import printable

SHARD_BYTES = 4 * 1024**3  # of one shard's images in memory
PARTS = "parts"
PLAN = "parts/plan.json"


@dataclass(frozen=True)
class ShardTask:
    """What one shard is made of.

    ids, labels: (N,) int64; images: (N, C, H, W) uint8, or N places to read them from.
    """

    file: str
    split: str
    ids: np.ndarray
    labels: np.ndarray
    images: np.ndarray | Sequence[Place]
    storing: Storing

    @property
    def fingerprint(self) -> str:
        """Hash what the shard is made of; of images that are still in files, their places."""
        digest = hashlib.sha256(
            repr((self.split, self.ids.tolist(), self.labels.tolist(), self.storing)).encode()
        )
        digest.update(
            self.images.tobytes()
            if isinstance(self.images, np.ndarray)
            else repr(self.images).encode()
        )
        return digest.hexdigest()


def shard_tasks(
    found: Raw | Listing,
    splits: dict[str, np.ndarray],
    *,
    rows_per_shard: int,
    storing: Mapping[str, Storing],
) -> Iterator[ShardTask]:
    """Yield the task of every shard: split by split, `rows_per_shard` images each.

    storing: of each split.
    """
    for split in SPLITS:
        ids = splits[split]
        for number, first in enumerate(range(0, len(ids), rows_per_shard)):
            rows = ids[first : first + rows_per_shard]
            images = (
                found.images[rows]
                if isinstance(found, Raw)
                else [found.images[one] for one in rows.tolist()]
            )
            yield ShardTask(
                f"{split}-{number:05d}.parquet",
                split,
                rows,
                found.labels[rows],
                images,
                storing[split],
            )


def progress(storage: Storage) -> tuple[int, int | None]:
    """Return how many shards of a dataset are written, and how many there will be.

    The second is None where it is not known yet.
    """
    done = sum(name.endswith(".parquet.json") for name in storage.names(PARTS))
    try:
        return done, int(storage.read_json(PLAN)["shards"])
    except (
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
    ):  # only the number of shards is shown from it
        return done, None


def write_shard(task: ShardTask, storage: Storage) -> dict[str, Any]:
    """Write a shard and return its part.

    A part that is there already, undamaged and with the same fingerprint, is only read.

    The part holds what the manifest needs: rows, bytes, sha256, shape, sums over pixels per
    channel, the corrupt images left out, and how many were smaller than they are stored, with the
    smallest.
    """
    fingerprint = task.fingerprint
    name = f"{PARTS}/{task.file}.json"
    part: dict[str, Any]
    with contextlib.suppress(
        FileNotFoundError, ValueError
    ):  # without a part, or with a damaged one, the shard is written again
        part = read_sealed(storage, name)
        if part.get("fingerprint") == fingerprint:
            return part
    read = _read(task)
    pixels = read.pixels
    kept = read.kept
    part = {
        "file": task.file,
        "split": task.split,
        "rows": len(kept),
        "fingerprint": fingerprint,
        "corrupt": read.corrupt,
    }
    part["enlarged"] = {"count": len(read.enlarged), "smallest": min(read.enlarged, default=None)}
    if len(kept):
        stored = (
            [task.storing.encode(one) for one in pixels]
            if task.storing.encoding == "jpeg"
            else pixels
        )
        data = shard_bytes(stored, task.labels[kept], task.ids[kept])
        storage.write(task.file, data)
        part |= {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "shape": list(pixels.shape[1:]),
        }
        part |= {"pixels": pixels[:, 0].size, **_sums(pixels)}
    storage.write_json(name, sealed(part))
    return part


def _sums(pixels: np.ndarray) -> dict[str, list[int]]:
    """Return the exact sums of the pixel values and of their squares, per channel."""
    counts = np.stack(
        [
            np.bincount(pixels[:, channel].ravel(), minlength=256)
            for channel in range(pixels.shape[1])
        ]
    )
    values = np.arange(256)
    return {"sum": (counts @ values).tolist(), "sum_of_squares": (counts @ values**2).tolist()}


@dataclass
class _Read:
    """The images of a shard.

    pixels: (N, C, H, W) uint8; kept: their rows in the task, (N,) int64; corrupt: those that could
    not be read; enlarged: [short side, name, "W x H"] of those smaller than they are stored.
    """

    pixels: np.ndarray
    kept: np.ndarray
    corrupt: list[dict[str, Any]] = field(default_factory=list)
    enlarged: list[list[Any]] = field(default_factory=list)


def _read(task: ShardTask) -> _Read:
    """Return a task's images, those that could be read."""
    if isinstance(task.images, np.ndarray):
        return _Read(task.images, np.arange(len(task.ids)))
    images: list[np.ndarray] = []
    kept: list[int] = []
    corrupt: list[dict[str, Any]] = []
    enlarged: list[list[Any]] = []
    for row, place in enumerate(task.images):
        try:
            image = opened(place.read())
        # an OSError is not caught: it is no property of the image, and the storage may come back
        except CorruptImageError as error:
            corrupt.append(
                {
                    "image_id": int(task.ids[row]),
                    "image": printable(place.name),
                    "reason": str(error),
                }
            )
            continue
        images.append(task.storing.pixels(image))
        if len(images) == 1:
            _check_room(images[0], len(task.images), place)
        kept.append(row)
        if min(image.size) < task.storing.image_size:
            enlarged.append(
                [min(image.size), printable(place.name), f"{image.width} x {image.height}"]
            )
        if images[-1].shape != images[0].shape:
            _, h, w = images[0].shape
            _, height, width = images[-1].shape
            raise ValueError(
                f"images differ in size: {printable(place.name)} is {width} x {height}, others "
                f"{w} x {h}; give --data.image-size N"
            )
    pixels = np.stack(images) if images else np.empty((0, 3, 0, 0), np.uint8)
    return _Read(pixels, np.array(kept, dtype=np.int64), corrupt, enlarged)


def _check_room(image: np.ndarray, count: int, place: Place) -> None:
    """Raise ValueError where a shard of such images would not fit into memory.

    image: (C, H, W) uint8.
    """
    if image.nbytes * count > SHARD_BYTES:
        _, height, width = image.shape
        raise ValueError(
            f"data.rows_per_shard must be at most {max(1, SHARD_BYTES // image.nbytes)} for images "
            f"of {width} x {height} ({printable(place.name)}), got {count}; give a smaller "
            "--data.rows-per-shard or --data.image-size"
        )
