"""Accuracies, their intervals and paired tests, computed from integer counts.

Wilson (1927), with p = successes / n and z = the normal quantile of the confidence:
    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

Newcombe, paired (1998, his method 10), for D = p − q = (only_a − only_b) / n with the Wilson limits
(l, u) of p and (l′, u′) of q:
    from   D − √((p − l)² − 2φ(p − l)(u′ − q) + (u′ − q)²)
    to     D + √((u − p)² − 2φ(u − p)(q − l′) + (q − l′)²)
    φ = C / √(product of the four margins), 0 if one is 0
    B = both · neither − only_a · only_b
    C = max(B − n/2, 0) if B > 0, else B

McNemar, exact, with a = only_a and b = only_b:
    2 · P[Binomial(a + b, ½) ≤ min(a, b)], at most 1

Anytime, for M robust ones among all N images of a set, of which n in random order have been seen
and s of those are robust (Waudby-Smith & Ramdas 2020, arXiv 2006.04347, with a uniform prior on M;
for N without bound it is Robbins' sequence of 1970):
    posterior(M) = C(M, s) · C(N − M, n − s) / C(N + 1, n + 1)
    every M with posterior(M) > (1 − confidence) / (N + 1)
prior / posterior is a martingale for the true M, so by Ville's inequality the probability that the
interval ever leaves M out, at any n, is at most 1 − confidence. It may be looked at after every
image, and looking may decide when to stop; a Wilson interval allows one look at a fixed n.

Counts are added as integers and divided once, so a smaller last batch has no more weight than its
images.
"""

import math
import operator
from collections.abc import Callable
from statistics import NormalDist
from typing import SupportsIndex

_ROUNDING = 1e-6  # of a sum of logarithms of factorials, on the side that makes an interval wider


def accuracy(successes: SupportsIndex, n: SupportsIndex) -> float:
    """Return the fraction of all `n` images that succeeded, in [0, 1].

    successes: integer in [0, n]; n: integer >= 1. Raises ValueError outside these ranges, TypeError
    for fractions.
    """
    successes, n = _counts(successes, n)
    return successes / n


def wilson_interval(
    successes: SupportsIndex, n: SupportsIndex, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of an accuracy, both in [0, 1].

    successes: integer in [0, n]; n: integer >= 1; confidence: in (0, 1). Raises ValueError outside
    these ranges. Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", 1927.
    """
    successes, n = _counts(successes, n)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be > 0 and < 1, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The formula gives exactly 0 and 1 at the extremes; rounding would not.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == n else (centre + half_width) / scale
    return low, high


def anytime_interval(
    successes: SupportsIndex,
    seen: SupportsIndex,
    *,
    total: SupportsIndex,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return the interval (low, high) of the accuracy on all `total` images, both in [0, 1].

    successes: integer in [0, seen]; seen: integer in [0, total], the first images of a random order
    of the whole set; confidence: in (0, 1), for all numbers of seen images together. Once all are
    seen, both ends are the accuracy. Raises ValueError outside these ranges.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be > 0 and < 1, got {confidence}")
    total = _whole("total", total)
    seen = _not_negative("seen", seen)
    if total < 1 or seen > total:
        raise ValueError(f"seen must be an integer in [0, total = {total}], got {seen}")
    if seen == 0:
        return 0.0, 1.0
    robust, _ = _counts(successes, seen)
    broken = seen - robust
    constant = _log_choose(total + 1, seen + 1) + math.log((1 - confidence) / (total + 1))

    def plausible(count: int) -> bool:
        found = _log_choose(count, robust) + _log_choose(total - count, broken)
        return found > constant - _ROUNDING

    likeliest = max(robust, min(total - broken, (robust * total - broken) // seen + 1))
    return (
        _last(plausible, likeliest, robust) / total,
        _last(plausible, likeliest, total - broken) / total,
    )


def _last(holds: Callable[[int], bool], inside: int, end: int) -> int:
    """Return the number nearest to `end` for which `holds`, as it does from `inside` to there."""
    if holds(end):
        return end
    outside = end
    while abs(outside - inside) > 1:
        middle = (inside + outside) // 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def paired_difference_interval(
    both: SupportsIndex,
    only_a: SupportsIndex,
    only_b: SupportsIndex,
    neither: SupportsIndex,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Return Newcombe's interval (low, high) of accuracy(a) − accuracy(b) on the same images.

    Both ends lie in [−1, 1]. both, only_a, only_b, neither: numbers >= 0 of images that both models
    get right, one alone, none; at least one image in all. confidence: in (0, 1). Raises ValueError
    outside these ranges. The interval has width even where the models never differ.
    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", 1998.
    """
    a = _not_negative("both", both)
    b = _not_negative("only_a", only_a)
    c = _not_negative("only_b", only_b)
    d = _not_negative("neither", neither)
    n = a + b + c + d
    p = accuracy(a + b, n)
    q = accuracy(a + c, n)
    low_p, high_p = wilson_interval(a + b, n, confidence=confidence)
    low_q, high_q = wilson_interval(a + c, n, confidence=confidence)
    phi = _phi(a, b, c, d)
    below = _joined(p - low_p, high_q - q, phi)
    above = _joined(high_p - p, q - low_q, phi)
    return max(-1.0, (b - c) / n - below), min(1.0, (b - c) / n + above)


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Return Newcombe's correlation of two accuracies from the counts of their fourfold table."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if not margins:
        return 0.0
    excess = a * d - b * c
    corrected = max(excess - (a + b + c + d) / 2, 0.0) if excess > 0 else excess
    return corrected / math.sqrt(margins)


def _joined(first: float, second: float, phi: float) -> float:
    """Return the error of a difference from the errors of its parts, whose correlation is phi."""
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))


def mcnemar_p_value(only_a: SupportsIndex, only_b: SupportsIndex) -> float:
    """Return the exact two-sided p-value that two models differ on the same images, in [0, 1].

    only_a, only_b: numbers >= 0 of images that one model alone gets right. No discordant image
    gives 1. Raises ValueError if negative.
    """
    only_a = _not_negative("only_a", only_a)
    only_b = _not_negative("only_b", only_b)
    discordant = only_a + only_b
    term = tail = 1
    for k in range(min(only_a, only_b)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    # A quotient of integers is rounded once and cannot overflow, however many images there are.
    return min(1.0, 2 * tail / (1 << discordant))


def _not_negative(name: str, value: SupportsIndex) -> int:
    """Return `value` as int; raise ValueError below 0."""
    whole = _whole(name, value)
    if whole < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {whole}")
    return whole


def _counts(successes: SupportsIndex, n: SupportsIndex) -> tuple[int, int]:
    """Return both counts as int; raise ValueError unless 0 <= successes <= n and n >= 1."""
    whole_successes = _whole("successes", successes)
    whole_n = _whole("n", n)
    if whole_n < 1:
        raise ValueError(f"n must be an integer >= 1, got {whole_n}")
    if not 0 <= whole_successes <= whole_n:
        raise ValueError(
            f"successes must be an integer in [0, n = {whole_n}], got {whole_successes}"
        )
    return whole_successes, whole_n


def _whole(name: str, value: SupportsIndex) -> int:
    """Return `value` as int; raise TypeError for a fraction, such as a mean of batches."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {value!r} ({type(value).__name__})"
        ) from None
