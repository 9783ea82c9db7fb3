"""The verdict on each run: whether, where and at which distance the image broke."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER, CLEAN_ERROR = -1, -2


@dataclass
class Verdicts:
    """Collect one row per run of an image; all (N,) on the CPU.

    prediction, margin, distance: at the first breaking point, or, for a survivor, at its visited point of smallest margin.
    """

    prediction: Tensor
    margin: Tensor
    first_broken_step: Tensor
    passes: Tensor
    distance: Tensor
    zero_share: Tensor

    @classmethod
    def empty(cls, count: int) -> "Verdicts":
        """Make room for `count` rows."""
        whole = torch.zeros(count, dtype=torch.int64)
        zeros = torch.zeros(count, dtype=torch.float32)
        never = torch.full_like(whole, NEVER)
        return cls(
            whole.clone(),
            torch.full_like(zeros, torch.inf),
            never,
            whole.clone(),
            zeros,
            zeros.clone(),
        )

    def write(self, rows: Tensor, other: "Verdicts") -> None:
        """Let these rows be those of `other`."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[rows] = getattr(other, name).to(getattr(self, name).dtype)

    def take(self, rows: Tensor) -> "Verdicts":
        """Return these rows."""
        return Verdicts(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def by_run(verdicts: Verdicts, images: int, *, runs: int) -> Iterator[tuple[Tensor, Verdicts]]:
    """Yield for each run the images that no run before it broke, (M,) int64, and their verdicts; what is not yielded means nothing."""
    waiting = torch.arange(images)
    for run in range(runs):
        found = verdicts.take(run * images + waiting)
        yield waiting, found
        waiting = waiting[found.first_broken_step == NEVER]
