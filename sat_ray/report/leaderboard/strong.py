"""The strong verdict on a model, and the gap between it and the paper's measure, PGD.

    strong robust accuracy    correct under every PGD attack and under every strong attack, image by image
    gap                       images that survive PGD and fall to the strong attacks, as a share of all images
    share of the survivors    the same, as a share of the images that survive PGD

The rule for "PGD flatters this row": the share of the survivors is above LARGEST_SHARE, and not by chance of few images: the lower end
of its 95 % Wilson interval is above it too. Why one limit for every epsilon and activation: a PGD attack of 200 steps crosses the ball
many times, and where gradients point somewhere it ends near what APGD finds, whatever the activation. On the digits at epsilon 32/255
the strong attacks break 0.5 to 4.5 % of the survivors of 100 steps, relu and sharp and soft activations alike; at 64/255, where
training with one step teaches the network to hide its gradients, 25 to 48 %. A larger share is therefore no property of the ball or of
the activation: the gradient leads PGD astray. And a limit of 5 % keeps what it is for: with 60 to 80 % survivors a smaller gap moves
no row by more than 3 to 4 points, about what a sweep can see at all. Whether PGD favours an activation *over relu* is another
question, answered for a configuration by its `gap_difference` (`sat_ray.report.leaderboard.groups`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sat_ray.evaluation.intervals import accuracy, wilson_interval
from sat_ray.report.leaderboard.summary import BoolArray, Survival, survival

LARGEST_SHARE = 0.05
FLATTERED = "PGD overestimates this row"


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
        """Return the 95 % Wilson interval of the share; (0, 1) without survivors, where nothing is known."""
        return wilson_interval(self.broken, self.survivors) if self.survivors else (0.0, 1.0)

    @property
    def flattered(self) -> bool:
        """Say whether the share is above its limit, chance of few images taken into account."""
        return self.interval[0] > LARGEST_SHARE


@dataclass(frozen=True, kw_only=True, eq=False)
class StrongVerdict:
    """Hold the strong verdict on a model: robust (N,) bool in the order of its images, the gap, and the accuracy after each attack.

    attacks: by name, robust accuracy under PGD and this attack; of a cascade the last one is not the strong number, all together are.
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

    images: under PGD; table: outcomes of the strong attacks, with rows for every survivor of PGD at least.
    Raises ValueError where `survival` does, for images or labels that PGD did not see, and for a survivor without rows: each would let
    an image count as robust that no strong attack has met.
    """
    survivors = images.image_ids[images.robust]
    if table.num_rows == 0 and len(survivors) == 0:
        return StrongVerdict(
            robust=images.robust.copy(),
            gap=Gap(n=len(images.robust), survivors=0, broken=0),
            attacks={},
        )
    found = survival(table)
    unknown = np.setdiff1d(found.image_ids, images.image_ids)
    if len(unknown):
        raise ValueError(
            f"strong_table has image_id {unknown[0]}, which table has not; allowed: the same test images"
        )
    missing = np.setdiff1d(survivors, found.image_ids)
    if len(missing):
        raise ValueError(
            f"strong_table has no row for {len(missing)} of {len(survivors)} survivors of PGD (image_id {missing[0]} first); "
            "allowed: every survivor under the strong attacks"
        )
    place = np.searchsorted(images.image_ids, found.image_ids)
    if not np.array_equal(images.labels[place], found.labels):
        raise ValueError("label differs between table and strong_table; allowed: the same labels")
    robust = images.robust.copy()
    robust[place] &= found.robust
    n = len(robust)
    gap = Gap(n=n, survivors=len(survivors), broken=len(survivors) - int(robust.sum()))
    kept = {
        name: int((alone & images.robust[place]).sum()) for name, alone in found.by_attack.items()
    }
    return StrongVerdict(
        robust=robust, gap=gap, attacks={name: accuracy(count, n) for name, count in kept.items()}
    )
