"""Which difference between two configurations a sweep can detect: the power of its test.

The test is that of `sat_ray.report.leaderboard.variation`:

    D[s, i] = mu + a_s + b_i + e_si       S seeds, N images, both sides with the same seeds, images
    v_s = var_a / S + var_e / (S N)       v_i = var_b / N
    a difference is claimed where         |mean D| > sqrt( t^2 v_s Q / (S - 1)  +  z^2 v_i )
    mean D ~ Normal(mu, v_s + v_i)        Q ~ chi-squared with S - 1 degrees of freedom,
                                          independent of mean D
    t, z: two-sided quantiles at level / comparisons

v_i comes from hundreds of images and is taken as known. v_s is estimated from few seeds, hence Q,
and the power is the mean over Q of a normal probability. level / comparisons is the level of
Holm's first step, so a difference that is detected here is detected whatever the other
configurations do; later steps detect slightly more. `tests/report/test_power.py` compares all
this with simulated verdicts.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from sat_ray.report.leaderboard.variation import MixedDifference

LEVEL = 0.05
POWER = 0.8
_QUANTILES = 400  # points at which the mean over the estimated variance is taken
_HALVINGS = 50


def chance_to_detect(
    difference: float, *, seed_error: float, image_error: float, seeds: int, comparisons: int = 1
) -> float:
    """Return the probability that the test claims a true difference; fractions.

    seed_error, image_error: sqrt(v_s), sqrt(v_i).
    Raises ValueError for fewer than 2 seeds or 1 comparison.
    """
    if seeds < 2 or comparisons < 1:
        raise ValueError(
            f"seeds must be at least 2 and comparisons at least 1, got {seeds} and {comparisons}"
        )
    freedom = seeds - 1
    tail = LEVEL / comparisons / 2
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


def smallest_detectable(
    *, seed_error: float, image_error: float, seeds: int, comparisons: int = 1
) -> float:
    """Return the smallest true difference that the test claims with 80 % power, a fraction.

    Arguments as in `chance_to_detect`.
    """

    def detected(difference: float) -> bool:
        chance = chance_to_detect(
            difference,
            seed_error=seed_error,
            image_error=image_error,
            seeds=seeds,
            comparisons=comparisons,
        )
        return chance >= POWER

    low = 0.0
    high = 1.0
    largest = 1e6 * max(math.hypot(seed_error, image_error), 1e-12)
    while high < largest and not detected(high):
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if detected(middle) else (middle, high)
    return high


def detectable_in(
    found: Sequence[MixedDifference], *, seeds: int, planned_seeds: int | None = None
) -> float | None:
    """Return the smallest difference that a finished sweep detects with 80 % power.

    None where nothing was compared. found: the difference of every configuration to relu;
    seeds: the fewest behind any of them; planned_seeds: for the same sweep with so many seeds.
    The standard errors are the root mean squares of those that the configurations show, so one
    that varies much from seed to seed makes the result larger.
    """
    if not found:
        return None
    planned = planned_seeds or seeds
    of_seeds = sum(one.seed_error**2 for one in found) / len(found)
    of_images = sum(one.image_error**2 for one in found) / len(found)
    return smallest_detectable(
        seed_error=math.sqrt(of_seeds * seeds / planned),
        image_error=math.sqrt(of_images),
        seeds=planned,
        comparisons=len(found),
    )
