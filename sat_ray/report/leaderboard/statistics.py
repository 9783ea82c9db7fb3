"""Statistics behind every claim that one configuration beats another.

The unit of a claim about an activation is the seed: seeds are paired, their differences d₁…d_S give the Student interval
    mean(d) ± t_{S−1} · sd(d) / √S.
It holds for the images at hand, which all seeds share. A claim counts other images too:
`sat_ray.report.leaderboard.variation`. The effect size is
Hedges' g of the paired differences,
    g = J(S − 1) · mean(d) / sd(d)          J(m) = Γ(m / 2) / (√(m / 2) · Γ((m − 1) / 2))          (Hedges 1981),
the difference in units of what it varies by from seed to seed; J takes out the bias of few seeds (0.56 for 3, 0.91 for 10).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

MINIMUM_SEEDS = 3
# Accuracies are k/n; equal differences may still be some ulp apart.
_NO_SPREAD = 1e-12


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Hold the mean over seeds of (treatment − baseline), its interval and two-sided p-value; fractions, not points."""

    seeds: tuple[int, ...]
    mean: float
    standard_deviation: float
    low: float
    high: float
    p_value: float

    @property
    def half_width(self) -> float:
        """Return half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def effect_size(self) -> float | None:
        """Return Hedges' g, mean over standard deviation without the bias of few seeds; None where the seeds do not differ."""
        if not self.has_spread:
            return None
        freedom = len(self.seeds) - 1
        correction = (
            math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2))
            / math.sqrt(freedom / 2)
            if freedom > 1
            else 0.0
        )
        return correction * self.mean / self.standard_deviation

    @property
    def has_spread(self) -> bool:
        """Say whether the seeds differ at all; if not, the interval is empty of information (a seed that is never used looks like this)."""
        return self.standard_deviation > 0.0


def paired_difference(
    treatment: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 0.95
) -> PairedDifference:
    """Compare two configurations by the seeds that both have (Student t over the differences).

    treatment, baseline: seed → accuracy in [0, 1]. Differences without spread get p-value 1, whatever their mean.
    Raises ValueError with fewer than 2 common seeds or a confidence outside (0, 1).
    """
    seeds = tuple(sorted(set(treatment) & set(baseline)))
    if len(seeds) < 2:
        raise ValueError(f"treatment and baseline share {len(seeds)} seeds; allowed: at least 2")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; allowed: between 0 and 1, both excluded")
    differences = np.array([treatment[seed] - baseline[seed] for seed in seeds])
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if deviation < _NO_SPREAD:
        return PairedDifference(
            seeds=seeds, mean=mean, standard_deviation=0.0, low=mean, high=mean, p_value=1.0
        )
    error, freedom = deviation / math.sqrt(len(seeds)), len(seeds) - 1
    # Student's distribution from scipy.special: scipy.stats would be seconds of import for the same two numbers.
    half_width = float(stdtrit(freedom, 0.5 + confidence / 2)) * error
    p_value = 2 * float(stdtr(freedom, -abs(mean) / error))
    return PairedDifference(
        seeds=seeds,
        mean=mean,
        standard_deviation=deviation,
        low=mean - half_width,
        high=mean + half_width,
        p_value=p_value,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values in the order given; raise ValueError for one outside [0, 1].

    Rejecting where the adjusted value is ≤ level keeps the chance of any false claim in the family ≤ level.
    """
    for index, value in enumerate(p_values):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"p_values[{index}] is {value}; allowed: [0, 1]")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
