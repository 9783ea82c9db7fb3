"""The verdict on each run: whether, where and at which distance the image broke."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sat_ray.evaluation.first_broken_step import NEVER


@dataclass
class Verdicts:
    """Hold one row per run of an image; all (N,) on the CPU.

    prediction, margin, distance: at the first breaking point, or, for a survivor, at its visited
    point of smallest margin.
    """

    prediction: Tensor
    margin: Tensor
    first_broken_step: Tensor
    passes: Tensor
    distance: Tensor

    @classmethod
    def empty(cls, count: int) -> "Verdicts":
        """Return `count` rows of runs that have visited no point."""
        whole = torch.zeros(count, dtype=torch.int64)
        zeros = torch.zeros(count, dtype=torch.float32)
        return cls(
            prediction=whole.clone(),
            margin=torch.full_like(zeros, torch.inf),
            first_broken_step=torch.full_like(whole, NEVER),
            passes=whole.clone(),
            distance=zeros,
        )

    def write(self, rows: Tensor, other: "Verdicts") -> None:
        """Overwrite these rows by those of `other`."""
        for field in fields(self):
            values = getattr(self, field.name)
            values[rows] = getattr(other, field.name).to(values.dtype)

    def take(self, rows: Tensor) -> "Verdicts":
        """Return these rows."""
        return Verdicts(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def joined_with(self, earlier: "Verdicts", *, worse: Tensor) -> "Verdicts":
        """Return the verdicts on all points so far, of which these rows are the latest.

        worse: (N,) bool, where the latest point is worse for the model than all earlier ones.
        """
        return Verdicts(
            prediction=torch.where(worse, self.prediction, earlier.prediction),
            margin=torch.where(worse, self.margin, earlier.margin),
            first_broken_step=torch.where(
                earlier.first_broken_step == NEVER,
                self.first_broken_step,
                earlier.first_broken_step,
            ),
            passes=self.passes + earlier.passes,
            distance=torch.where(worse, self.distance, earlier.distance),
        )


def by_run(verdicts: Verdicts, images: int, *, runs: int) -> Iterator[tuple[Tensor, Verdicts]]:
    """Yield for each run the images that no earlier run broke, (M,) int64, and their verdicts.

    The other rows have no meaning.
    """
    waiting = torch.arange(images)
    for run in range(runs):
        found = verdicts.take(run * images + waiting)
        yield waiting, found
        waiting = waiting[found.first_broken_step == NEVER]
