"""The strong verdict on a model, and the gap between it and the paper's measure, PGD.

    strong robust accuracy    correct under every PGD attack and under every strong attack, image
                              by image
    gap                       images that survive PGD and are broken by the strong attacks, as a
                              share of all images
    share of the survivors    the same, as a share of the images that survive PGD

PGD overestimates a row if the share of the survivors is above LARGEST_SHARE, and not by chance of
few images: the lower end of its 95 % Wilson interval is above it too. Why one limit for every
epsilon and activation: a PGD attack of 200 steps crosses the ball many times, and where gradients
point somewhere it ends near what APGD finds, whatever the activation. On the digits at epsilon
32/255 the strong attacks break 0.5 to 4.5 % of the survivors of 100 steps, relu and sharp and soft
activations alike; at 64/255, where training with one step teaches the network to hide its
gradients, 25 to 48 %. A larger share is therefore no property of the ball or of the activation:
the gradient leads PGD astray. With 60 to 80 % survivors a gap below the limit of 5 % moves no row
by more than 3 to 4 points, about what a sweep can detect. Whether PGD favours an activation *over
relu* is another question, answered for a configuration by its `gap_difference`
(`sat_ray.report.leaderboard.groups`).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sat_ray.evaluation.intervals import accuracy, wilson_interval
from sat_ray.report.leaderboard.summary import BoolArray, IntArray, Survival, survival

LARGEST_SHARE = 0.05
OVERESTIMATED = "PGD overestimates this row"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Hold how many of n images survive PGD, and how many of these the strong attacks break."""

    n: int
    survivors: int
    broken: int

    @property
    def of_all(self) -> float:
        """Return the broken survivors as a fraction of all images."""
        return accuracy(self.broken, self.n)

    @property
    def share(self) -> float:
        """Return the broken survivors as a fraction of the survivors, 0 where there are none."""
        return accuracy(self.broken, self.survivors) if self.survivors else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % Wilson interval of the share; (0, 1) without survivors."""
        return wilson_interval(self.broken, self.survivors) if self.survivors else (0.0, 1.0)

    @property
    def overestimated(self) -> bool:
        """Say whether the share is above its limit, chance of few images taken into account."""
        return self.interval[0] > LARGEST_SHARE


@dataclass(frozen=True, kw_only=True, eq=False)
class StrongVerdict:
    """Hold the strong verdict on a model: robust (N,) bool in the order of its images, the gap.

    attacks: by name, robust accuracy under PGD and this attack. In a cascade each attack meets
    the survivors of the last one only; the strong number counts all attacks together.
    """

    robust: BoolArray
    gap: Gap
    attacks: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Return the strong robust accuracy."""
        return accuracy(int(self.robust.sum()), len(self.robust))

    @property
    def interval(self) -> tuple[float, float]:
        """Return its 95 % Wilson interval over images."""
        return wilson_interval(int(self.robust.sum()), len(self.robust))


def strong_verdict(images: Survival, table: pa.Table) -> StrongVerdict:
    """Return the pointwise AND of PGD's verdicts and those of the strong attacks.

    images: under PGD; table: outcomes of the strong attacks, with rows for every survivor of PGD
    at least.
    Raises ValueError where `survival` does, for images or labels that PGD did not see, and for a
    survivor without rows: each would let an image count as robust that no strong attack has met.
    """
    n = len(images.robust)
    survivors = images.image_ids[images.robust]
    if table.num_rows == 0 and len(survivors) == 0:
        none = Gap(n=n, survivors=0, broken=0)
        return StrongVerdict(robust=images.robust.copy(), gap=none, attacks={})
    found = survival(table)
    _check_images(images, found, survivors)
    place = np.searchsorted(images.image_ids, found.image_ids)
    if not np.array_equal(images.labels[place], found.labels):
        raise ValueError("strong_table and table must have the same labels, got different ones")
    robust = images.robust.copy()
    robust[place] &= found.robust
    broken = len(survivors) - int(robust.sum())
    return StrongVerdict(
        robust=robust,
        gap=Gap(n=n, survivors=len(survivors), broken=broken),
        attacks={
            name: accuracy(int((alone & images.robust[place]).sum()), n)
            for name, alone in found.by_attack.items()
        },
    )


def _check_images(images: Survival, found: Survival, survivors: IntArray) -> None:
    unknown = np.setdiff1d(found.image_ids, images.image_ids)
    if len(unknown):
        raise ValueError(
            f"strong_table must have the images of table, got image_id {unknown[0]} besides"
        )
    missing = np.setdiff1d(survivors, found.image_ids)
    if len(missing):
        raise ValueError(
            f"strong_table must have rows for all {len(survivors)} survivors of PGD, got none for "
            f"{len(missing)} of them (image_id {missing[0]} first)"
        )
