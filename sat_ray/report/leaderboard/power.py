"""Which difference between two configurations a sweep can see: the power of the test in `sat_ray.report.leaderboard.variation`.

    D[s, i] = mu + a_s + b_i + e_si       S seeds, N images, both sides trained with the same seeds and judged on the same images
    v_s = var_a / S + var_e / (S N)       v_i = var_b / N
    the test claims a difference where    |mean D| > sqrt( t^2 v_s Q / (S - 1)  +  z^2 v_i )
    mean D ~ Normal(mu, v_s + v_i)        Q ~ chi-squared with S - 1 degrees of freedom, independent of mean D
    t, z: two-sided quantiles at level / comparisons

v_i comes from hundreds of images and is taken as known; v_s is estimated from few seeds, hence Q, and the power is the mean over Q of
a normal probability. level / comparisons is the level of Holm's first step, so a difference that is visible here is visible whatever
the other configurations do; later steps see a little more. `tests/report/test_power.py` holds all this against simulated verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from sat_ray.report.leaderboard.variation import MixedDifference

LEVEL = 0.05
POWER = 0.8
_QUANTILES = 400  # points at which the mean over the estimated variance is taken
_HALVINGS = 50


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """Hold the standard deviations of a_s, b_i and e_si, in fractions of accuracy."""

    seeds: float
    images: float
    rest: float

    def errors(self, *, seeds: int, images: int) -> tuple[float, float]:
        """Return (sqrt(v_s), sqrt(v_i)), the standard errors that so many seeds and images make."""
        of_seeds = self.seeds**2 / seeds + self.rest**2 / (seeds * images)
        return math.sqrt(of_seeds), self.images / math.sqrt(images)


def planned_deviations(
    *,
    accuracy: float,
    seed_deviation: float,
    seed_correlation: float,
    verdict_correlation: float,
    lasting: float,
) -> Deviations:
    """Return the deviations of a difference from what is known of one configuration before a sweep.

    accuracy: robust accuracy of both, in (0, 1); seed_deviation: its standard deviation over seeds, without the noise of few images;
    seed_correlation: of both accuracies under the same seed, in [-1, 1]; verdict_correlation: within a pair, of both verdicts on the
    same image, in [0, 1]; lasting: share of the differing verdicts that every seed repeats, in [0, 1].
    Raises ValueError outside these ranges.
    """
    shares = {"verdict_correlation": verdict_correlation, "lasting": lasting, "accuracy": accuracy}
    for name, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if not (seed_deviation >= 0.0 and -1.0 <= seed_correlation <= 1.0):
        found = f"got {seed_deviation} and {seed_correlation}"
        raise ValueError(
            f"seed_deviation must be at least 0 and seed_correlation in [-1, 1], {found}"
        )
    of_image = 2 * accuracy * (1 - accuracy) * (1 - verdict_correlation)
    return Deviations(
        seeds=seed_deviation * math.sqrt(2 * (1 - seed_correlation)),
        images=math.sqrt(lasting * of_image),
        rest=math.sqrt((1 - lasting) * of_image),
    )


def chance_to_see(
    difference: float,
    *,
    seed_error: float,
    image_error: float,
    seeds: int,
    comparisons: int = 1,
    level: float = LEVEL,
) -> float:
    """Return the probability that the test claims a true difference; fractions.

    seed_error, image_error: sqrt(v_s), sqrt(v_i). Raises ValueError for fewer than 2 seeds or 1 comparison.
    """
    if seeds < 2 or comparisons < 1:
        raise ValueError(
            f"seeds must be at least 2 and comparisons at least 1, got {seeds} and {comparisons}"
        )
    freedom = seeds - 1
    tail = level / comparisons / 2
    student = float(stdtrit(freedom, 1 - tail))
    normal = float(ndtri(1 - tail))
    spread = math.hypot(seed_error, image_error)
    if spread == 0.0:
        return float(difference != 0.0)
    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    estimated = seed_error**2 * chdtri(freedom, middles) / freedom
    limits = np.sqrt(student**2 * estimated + (normal * image_error) ** 2)
    claims = ndtr((difference - limits) / spread) + ndtr((-difference - limits) / spread)
    return float(claims.mean())


def smallest_visible(
    *,
    seed_error: float,
    image_error: float,
    seeds: int,
    comparisons: int = 1,
    level: float = LEVEL,
    power: float = POWER,
) -> float:
    """Return the smallest true difference that the test claims with this power, a fraction; arguments as in `chance_to_see`."""
    low, high = 0.0, 1.0
    scale = max(math.hypot(seed_error, image_error), 1e-12)
    while (
        high < 1e6 * scale
        and chance_to_see(
            high,
            seed_error=seed_error,
            image_error=image_error,
            seeds=seeds,
            comparisons=comparisons,
            level=level,
        )
        < power
    ):
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        seen = chance_to_see(
            middle,
            seed_error=seed_error,
            image_error=image_error,
            seeds=seeds,
            comparisons=comparisons,
            level=level,
        )
        low, high = (low, middle) if seen >= power else (middle, high)
    return high


def visible_difference(
    deviations: Deviations, *, seeds: int, images: int, comparisons: int = 1
) -> float:
    """Return the smallest difference that a sweep of so many seeds and images sees with 80 % power, a fraction."""
    seed_error, image_error = deviations.errors(seeds=seeds, images=images)
    return smallest_visible(
        seed_error=seed_error, image_error=image_error, seeds=seeds, comparisons=comparisons
    )


def visible_in(
    found: Sequence[MixedDifference], *, seeds: int, planned_seeds: int | None = None
) -> float | None:
    """Return the smallest difference that a finished sweep could see with 80 % power; None where nothing was compared.

    found: the difference of every configuration to relu; seeds: the fewest behind any of them. The standard errors are the root
    mean squares of those that the configurations show, so one that differs wildly from seed to seed makes the sweep look blinder.
    planned_seeds: ask what the same sweep would see with so many seeds.
    """
    if not found:
        return None
    planned = planned_seeds or seeds
    return smallest_visible(
        seed_error=math.sqrt(
            sum(one.seed_error**2 for one in found) / len(found) * seeds / planned
        ),
        image_error=math.sqrt(sum(one.image_error**2 for one in found) / len(found)),
        seeds=planned,
        comparisons=len(found),
    )
