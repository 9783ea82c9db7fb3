"""Which run of which image is flown next.

An image is attacked by its runs (restarts, or targets) until one breaks it. What a run finds depends on nothing but the image, so runs may
be flown in any order, and several of one image at once; what counts are the first that breaks the image and those before it. Runs whose
predecessors have all failed come first. Where none of these is left, slots get runs that will be needed if those in flight fail: a slot
costs as much empty as full.
"""

import torch
from torch import Tensor


class RunQueue:
    """Hand out runs; run r of image i is the number r * images + i. All tensors are (N,) int64 on the CPU."""

    def __init__(self, images: int, *, runs: int) -> None:
        self.images = images
        self.begun, self.ended = torch.zeros(2, images, dtype=torch.int64)
        self.first_broken = torch.full((images,), runs)  # `runs` where none has broken the image

    @property
    def waiting(self) -> int:
        """Return how many images wait for a run whose predecessors have all failed."""
        return int(((self.begun < self.first_broken) & (self.begun == self.ended)).sum())

    def take(self, wanted: int, *, ahead: bool = False) -> Tensor:
        """Return the numbers of at most `wanted` runs, one per image: those whose predecessors have failed, or, `ahead`, are in flight."""
        open_images = torch.nonzero(
            (self.begun < self.first_broken) & ((self.begun > self.ended) == ahead)
        ).flatten()
        chosen = open_images[torch.argsort(self.begun[open_images], stable=True)[:wanted]]
        numbers: Tensor = self.begun[chosen] * self.images + chosen
        self.begun[chosen] += 1
        return numbers

    def end(self, numbers: Tensor) -> None:
        """Note that these runs are over."""
        self.ended += torch.bincount(numbers % max(1, self.images), minlength=self.images)

    def note_broken(self, numbers: Tensor) -> None:
        """Note that these runs broke their images; to say it again changes nothing."""
        if len(numbers):
            self.first_broken.scatter_reduce_(
                0, numbers % self.images, numbers // self.images, reduce="amin"
            )

    def in_vain(self, numbers: Tensor) -> Tensor:
        """Tell of each run whether an earlier one has broken its image; False for -1, which is none."""
        if self.images == 0:
            return torch.zeros_like(numbers, dtype=torch.bool)
        return (numbers >= 0) & (numbers // self.images > self.first_broken[numbers % self.images])
