"""The order in which an epoch sees the rows of a training split.

It is new in every epoch, and the same for every loader and any number of processes.

A split of at most `window` rows is shuffled as a whole. A longer one is read shard by shard, so

    shards and the rows inside each are put into a random order, one shard after another;
    this sequence is cut into as many equal streams as a global batch has BatchNorm groups: stream g
    makes up group g of every step;
    in a stream, the row at place p is sorted by p + u, u uniform in [0, window / streams): no row
    moves further than that.

Processes work on whole groups, so they read different shards (except those that lie across a cut),
for any number of processes. A reader needs about `window` rows of the streams at a time. The rows
left over by the last global batch are other ones in every epoch.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from sat_ray.utils.randomness import Randomness, permutation


def epoch_order(
    shards: Sequence[int], *, groups: int, group_size: int, window: int, seed: int, epoch: int
) -> Tensor:
    """Return the rows of every group of every step of an epoch, each row at most once.

    The shape is (steps, groups, group_size), int64.

    shards: rows of each shard, in the order of the split; groups: BatchNorm groups of a global
    batch.
    """
    count = sum(shards)
    steps = count // (groups * group_size)
    if count <= window:
        order = permutation(count, seed=seed, epoch=epoch)
        return order[: steps * groups * group_size].view(steps, groups, group_size)
    sequence = _shard_by_shard(shards, seed=seed, epoch=epoch)
    cuts = [count * group // groups for group in range(groups + 1)]
    streams = [
        _within_window(sequence[first:last], max(1, window // groups), seed=seed, epoch=epoch)[
            : steps * group_size
        ]
        for first, last in pairwise(cuts)
    ]
    return torch.stack([stream.view(steps, group_size) for stream in streams], dim=1)


def _shard_by_shard(shards: Sequence[int], *, seed: int, epoch: int) -> Tensor:
    rank = torch.argsort(permutation(len(shards), seed=seed, epoch=epoch))
    rows = permutation(sum(shards), seed=seed, epoch=epoch)
    rank_of_row = rank.repeat_interleave(torch.tensor(shards))
    return rows[torch.argsort(rank_of_row[rows], stable=True)]


def _within_window(rows: Tensor, window: int, *, seed: int, epoch: int) -> Tensor:
    moved = Randomness(seed, rows).below(window, "order/window", 1, step=epoch)[:, 0]
    return rows[torch.argsort(torch.arange(len(rows)) + moved, stable=True)]
