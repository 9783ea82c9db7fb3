"""Training images, from memory or from their shards: one interface, the same batches.

A loader gets all rows of an epoch in advance (`data/epoch_order.py`). So it can read shards before
they are needed, check each against the manifest, decode groups of images ahead of their use in
threads (decoding JPEG releases Python's lock), and drop a shard after its last row. To continue
from a position, give a plan that begins there.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sat_ray.data.choices import Loading
from sat_ray.data.shards.manifest import read_manifest
from sat_ray.data.shards.parquet import as_split
from sat_ray.data.shards.reading import read_shard
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage

# Of decoded training images, in every process and on its accelerator. CIFAR has 0.15 GiB,
# ImageNet 179 GiB.
RESIDENT_BYTES = 4 * 1024**3
READERS = 2  # threads that read and check shards


@runtime_checkable
class Loader(Protocol):
    """The images to train on.

    shards: rows in each, in the order of the split; their sum is the number of images.
    """

    @property
    def shards(self) -> tuple[int, ...]:
        """Return the number of rows in each shard."""
        ...

    def ids(self, rows: Tensor) -> Tensor:
        """Return the image ids of rows, (N,) int64."""
        ...

    def batches(self, plan: Tensor) -> Iterator[list[Split]]:
        """Yield, for every step of a plan, its groups.

        plan: rows, (steps, groups, group size) int64.
        """
        ...


@dataclass(frozen=True)
class Resident:
    """A split in memory, on the device where it is trained on."""

    split: Split
    shards: tuple[int, ...]

    def ids(self, rows: Tensor) -> Tensor:
        """Return the image ids of rows."""
        return self.split.image_ids[rows.to(self.split.image_ids.device)].cpu()

    def batches(self, plan: Tensor) -> Iterator[list[Split]]:
        """Take rows out of memory."""
        for groups in plan.to(self.split.images.device):
            yield [self.split.take(rows) for rows in groups]


class Streamed:
    """A split that stays in its shards.

    threads: that decode; pin: deliver into page-locked memory, from which a GPU copies by itself.

    Memory: the shards in use (about the window of the order, encoded), those read ahead, and the
    groups decoded ahead.
    """

    def __init__(self, storage: Storage, split: str, *, threads: int, pin: bool = False) -> None:
        manifest = read_manifest(storage)
        self.storage = storage
        self.shape = manifest["shape"]
        self.threads = threads
        self.pin = pin
        self.entries: list[dict[str, Any]] = [
            shard for shard in manifest["shards"] if shard["split"] == split
        ]
        self.shards = shard_rows(manifest, split)
        self.starts = np.cumsum([0, *self.shards])

    def ids(self, rows: Tensor) -> Tensor:
        """Read the image ids of rows."""
        places = rows.numpy()
        shards = self._shard_of(places)
        found = np.empty(len(places), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            inside = shards == shard
            column = read_shard(self.storage, self.entries[shard], columns=["image_id"])[
                "image_id"
            ].to_numpy()
            found[inside] = column[places[inside] - self.starts[shard]]
        return torch.from_numpy(found)

    def batches(self, plan: Tensor) -> Iterator[list[Split]]:
        """Read and decode ahead of use.

        Raises CorruptShardError naming a shard that is damaged or missing.
        """
        groups = plan.flatten(0, 1).numpy()
        ahead = max(plan.shape[1], 1) + self.threads
        with (
            _Shelf(self, self._shard_of(groups), ahead=plan.shape[1] + 1) as shelf,
            ThreadPoolExecutor(self.threads) as decoders,
        ):
            numbers = iter(range(len(groups)))

            def submitted() -> Iterator[Future[Split]]:
                for number in numbers:
                    yield decoders.submit(
                        self._decoded, groups[number], shelf.shards[number], shelf.take(number)
                    )

            waiting = deque(islice(submitted(), ahead))
            try:
                for _ in plan:
                    delivered = []
                    for _ in range(plan.shape[1]):
                        first = waiting.popleft()
                        waiting.extend(islice(submitted(), 1))
                        delivered.append(first.result())
                    yield delivered
            finally:
                decoders.shutdown(cancel_futures=True)

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _decoded(
        self, rows: np.ndarray, shards: np.ndarray, tables: dict[int, Future[pa.Table]]
    ) -> Split:
        by_shard = np.argsort(shards, kind="stable")
        parts = [
            tables[shard].result().take(rows[shards == shard] - self.starts[shard])
            for shard in sorted(tables)
        ]
        split = as_split([pa.concat_tables(parts).take(np.argsort(by_shard))], self.shape)
        return split.pinned() if self.pin else split


class _Shelf:
    """The shards that are being read or used, and some that are read ahead.

    shards: (groups, group size), the shard of every row; ahead: shards read before they are needed.
    """

    def __init__(self, streamed: Streamed, shards: np.ndarray, *, ahead: int) -> None:
        self.streamed = streamed
        self.shards = shards
        self.ahead = ahead
        flat = shards.ravel()
        size = shards.shape[1]
        names, first = np.unique(flat, return_index=True)
        _, last = np.unique(flat[::-1], return_index=True)
        self.last_group = dict(
            zip(names.tolist(), ((len(flat) - 1 - last) // size).tolist(), strict=True)
        )
        self.to_come = deque(names[np.argsort(first)].tolist())
        self.tables: dict[int, Future[pa.Table]] = {}
        self.unused: set[int] = set()

    def __enter__(self) -> "_Shelf":
        self.readers = ThreadPoolExecutor(READERS)
        return self

    def __exit__(self, *_: object) -> None:
        self.readers.shutdown(cancel_futures=True)

    def take(self, group: int) -> dict[int, Future[pa.Table]]:
        """Return the shards of a group, and start to read those that come next.

        Shards that no later group needs are dropped. Call it for the groups in order.
        """
        needed = np.unique(self.shards[group]).tolist()
        self.unused.difference_update(needed)
        while self.to_come and (self.to_come[0] in needed or len(self.unused) < self.ahead):
            shard = self.to_come.popleft()
            self.tables[shard] = self.readers.submit(
                read_shard, self.streamed.storage, self.streamed.entries[shard]
            )
            self.unused.update({shard} - set(needed))
        taken = {shard: self.tables[shard] for shard in needed}
        for shard in needed:
            if self.last_group[shard] == group:
                del self.tables[shard]
        return taken


def streams(manifest: dict[str, Any], loading: Loading) -> bool:
    """Return whether the train split of a dataset stays in its shards during training."""
    return loading == "streaming" or (
        loading == "auto" and manifest["splits"]["train"] * prod(manifest["shape"]) > RESIDENT_BYTES
    )


def loader_of(train: Split | Loader, device: torch.device) -> Loader:
    """Return a loader of the training images; a split in memory is moved to the device."""
    if isinstance(train, Resident):
        return Resident(train.split.to(device), train.shards)
    return Resident(train.to(device), (len(train),)) if isinstance(train, Split) else train


def shard_rows(manifest: dict[str, Any], split: str) -> tuple[int, ...]:
    """Return the number of rows in each shard of a split."""
    shards: Sequence[dict[str, Any]] = manifest["shards"]
    return tuple(shard["rows"] for shard in shards if shard["split"] == split)
