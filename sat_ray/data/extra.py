"""Extra training images: the train split of a second dataset, a fixed share of every batch.

Of every BatchNorm group of a global batch, the same number of images is extra, and they come last.
A pass over the train split is an epoch as before. The extra images have an order of their own: pass
after pass over them, in which an epoch goes on where the one before it stopped. So every batch is a
function of seed, epoch and step, for any number of processes.

Their image ids are -1 - id, so that none is that of an image of the train split: random draws
differ, and messages show which is which.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_ray.data.choices import check_extra_count
from sat_ray.data.epoch_order import epoch_order
from sat_ray.data.loading import Loader, Resident, loader_of
from sat_ray.data.split import Arrays, Split


@dataclass(frozen=True)
class Extra:
    """Extra images and their share of every batch, in (0, 1).

    label_order: the model's class of each of their labels; () where they count alike.
    """

    images: Split | Arrays | Loader
    share: float
    label_order: tuple[int, ...] = ()

    def loader(self, device: torch.device) -> "ExtraLoader":
        """Return a loader of checked images; those in memory are moved to the device."""
        assert isinstance(self.images, Split | Loader)
        return ExtraLoader(loader_of(self.images, device), self.label_order, device)


class ExtraLoader:
    """Give the images of a loader their own ids and the labels of the model."""

    def __init__(self, loader: Loader, label_order: tuple[int, ...], device: torch.device) -> None:
        self.loader = loader
        at = device if isinstance(loader, Resident) else torch.device("cpu")
        self.order = torch.tensor(label_order, dtype=torch.int64, device=at)

    @property
    def shards(self) -> tuple[int, ...]:
        """Return the number of rows in each shard."""
        return self.loader.shards

    def ids(self, rows: Tensor) -> Tensor:
        """Return the image ids of rows."""
        return -1 - self.loader.ids(rows)

    def batches(self, plan: Tensor) -> Iterator[list[Split]]:
        """Yield the groups of every step of a plan."""
        for groups in self.loader.batches(plan):
            yield [self._own(group) for group in groups]

    def _own(self, group: Split) -> Split:
        labels = self.order[group.labels] if len(self.order) else group.labels
        return Split(group.images, labels, -1 - group.image_ids)


def extra_order(
    shards: tuple[int, ...],
    *,
    steps: int,
    groups: int,
    group_size: int,
    window: int,
    seed: int,
    epoch: int,
) -> Tensor:
    """Return the extra rows of every group of every step of an epoch, (steps, groups, group_size).

    steps: of an epoch; group_size: extra images in a group. Raises ValueError where there are not
    enough for one step.
    """
    check_extra_count(sum(shards), needed=groups * group_size)
    per_pass = sum(shards) // (groups * group_size)
    parts = []
    first = epoch * steps
    last = first + steps
    while first < last:
        number, at = divmod(first, per_pass)
        order = epoch_order(
            shards, groups=groups, group_size=group_size, window=window, seed=~seed, epoch=number
        )
        parts.append(order[at : at + last - first])
        first += len(parts[-1])
    return torch.cat(parts)


def joined(own: Split, more: Split, device: torch.device) -> Split:
    """Return the images of two splits as one, on a device."""

    def both(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([one.to(device, non_blocking=True) for one in (first, second)])

    return Split(
        both(own.images, more.images),
        both(own.labels, more.labels),
        both(own.image_ids, more.image_ids),
    )
