"""Accuracies, their intervals and paired tests, computed from whole counts.

    Wilson (1927):   (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n, z = the normal quantile of the confidence
    McNemar, exact:  2 · P[Binomial(a + b, ½) ≤ min(a, b)], capped at 1,   a = only_a, b = only_b

Counts are added up as integers and divided once, so a ragged last batch weighs no more than its images.
"""

from __future__ import annotations

import math
import operator
from statistics import NormalDist
from typing import SupportsIndex


def accuracy(successes: SupportsIndex, n: SupportsIndex) -> float:
    """Return the fraction of all `n` images that succeeded, in [0, 1].

    successes: whole number in [0, n]; n: whole number ≥ 1. Raises ValueError outside these ranges, TypeError for fractions.
    """
    successes, n = _counts(successes, n)
    return successes / n


def wilson_interval(successes: SupportsIndex, n: SupportsIndex, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of an accuracy, both in [0, 1].

    successes: whole number in [0, n]; n: whole number ≥ 1; confidence: in (0, 1). Raises ValueError outside these ranges.
    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    successes, n = _counts(successes, n)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; allowed: between 0 and 1, both excluded")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The formula meets 0 and 1 exactly at the extremes; rounding would leave a crumb on either side.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def mcnemar_p_value(only_a: SupportsIndex, only_b: SupportsIndex) -> float:
    """Return the exact two-sided p-value that two models differ on the same images, in [0, 1].

    only_a, only_b: numbers ≥ 0 of images that one model alone gets right. No discordant image gives 1. Raises ValueError if negative.
    """
    only_a, only_b = _whole("only_a", only_a), _whole("only_b", only_b)
    for name, value in (("only_a", only_a), ("only_b", only_b)):
        if value < 0:
            raise ValueError(f"{name} is {value}; allowed: a whole number ≥ 0")
    discordant = only_a + only_b
    term = tail = 1
    for k in range(min(only_a, only_b)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    # A quotient of integers is rounded once and cannot overflow, however many images there are.
    return min(1.0, 2 * tail / (1 << discordant))


def _counts(successes: SupportsIndex, n: SupportsIndex) -> tuple[int, int]:
    """Return both counts as int; raise ValueError unless 0 ≤ successes ≤ n and n ≥ 1."""
    whole_successes, whole_n = _whole("successes", successes), _whole("n", n)
    if whole_n < 1:
        raise ValueError(f"n is {whole_n}; allowed: a whole number ≥ 1")
    if not 0 <= whole_successes <= whole_n:
        raise ValueError(f"successes is {whole_successes}; allowed: a whole number in [0, n = {whole_n}]")
    return whole_successes, whole_n


def _whole(name: str, value: SupportsIndex) -> int:
    """Return `value` as int; raise TypeError for anything that is not a whole number (a mean of batches, say)."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); allowed: a whole number") from None
