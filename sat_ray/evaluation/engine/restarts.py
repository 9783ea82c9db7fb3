"""The restart queue: which run of which image is attacked next.

An image is attacked by its runs (restarts, or targets) until one breaks it. The result of a run
depends on the image alone, so runs may be done in any order, and several of one image at once. What
counts are the first run that breaks the image and those before it. Runs whose predecessors have all
failed come first. Where none of these is left, slots get runs that will be needed if the current
ones fail: an empty slot costs as much as a full one.
"""

import torch
from torch import Tensor


class RestartQueue:
    """Hand out runs; run r of image i has the number r * images + i.

    All tensors are (N,) int64 on the CPU.
    """

    def __init__(self, images: int, *, runs: int) -> None:
        self.images = images
        self.begun = torch.zeros(images, dtype=torch.int64)
        self.ended = torch.zeros(images, dtype=torch.int64)
        self.first_broken = torch.full((images,), runs)  # `runs` where none has broken the image

    @property
    def waiting(self) -> int:
        """Return how many images wait for a run whose predecessors have all failed."""
        return int(((self.begun < self.first_broken) & (self.begun == self.ended)).sum())

    def take(self, wanted: int, *, ahead: bool = False) -> Tensor:
        """Return the numbers of at most `wanted` runs, one per image.

        They are runs whose predecessors have failed or, `ahead`, have not ended yet.
        """
        unfinished = (self.begun < self.first_broken) & ((self.begun > self.ended) == ahead)
        images = torch.nonzero(unfinished).flatten()
        chosen = images[torch.argsort(self.begun[images], stable=True)[:wanted]]
        numbers: Tensor = self.begun[chosen] * self.images + chosen
        self.begun[chosen] += 1
        return numbers

    def end(self, numbers: Tensor) -> None:
        """Record that these runs have ended."""
        self.ended += torch.bincount(numbers % max(1, self.images), minlength=self.images)

    def mark_broken(self, numbers: Tensor) -> None:
        """Record that these runs broke their images; repeating it changes nothing."""
        if len(numbers):
            self.first_broken.scatter_reduce_(
                0, numbers % self.images, numbers // self.images, reduce="amin"
            )

    def redundant(self, numbers: Tensor) -> Tensor:
        """Return a mask of runs made redundant by an earlier success; False for -1, no run."""
        if self.images == 0:
            return torch.zeros_like(numbers, dtype=torch.bool)
        return (numbers >= 0) & (numbers // self.images > self.first_broken[numbers % self.images])
