"""The anytime interval against scipy's beta-binomial, and its coverage over all moments of looking.

Coverage is computed, not simulated: the probability of every path of counts in a small set.
"""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sat_ray.evaluation.intervals import anytime_interval

TOTAL = 48
Intervals = dict[tuple[int, int], tuple[float, float]]


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    total = draw(st.integers(1, 300))
    seen = draw(st.integers(0, total))
    return draw(st.integers(0, seen)), seen, total


@given(counts(), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_holds_what_the_posterior_of_scipy_makes_plausible(
    count: tuple[int, int, int], confidence: float
) -> None:
    robust, seen, total = count
    posterior = stats.betabinom(total - seen, robust + 1, seen - robust + 1)
    least = (1 - confidence) / (total + 1)
    plausible = [
        robust + more for more in range(total - seen + 1) if posterior.pmf(more) > least * 1.00001
    ]
    low, high = anytime_interval(robust, seen, total=total, confidence=confidence)
    assert round(low * total) <= plausible[0] and plausible[-1] <= round(high * total)
    nearly = [
        robust + more for more in range(total - seen + 1) if posterior.pmf(more) > least * 0.99999
    ]
    assert nearly[0] <= round(low * total) and round(high * total) <= nearly[-1]


def steps(states: dict[int, float], *, robust: int, seen: int) -> Iterator[tuple[int, float]]:
    """Yield (robust ones seen, probability) after one more image of a random order."""
    left = TOTAL - seen
    for found, probability in states.items():
        good = robust - found
        if good:
            yield found + 1, probability * good / left
        if left > good:
            yield found, probability * (left - good) / left


def ever_missed(intervals: Intervals, *, robust: int) -> float:
    """Return the probability that some interval, at any number of images, leaves the truth out."""
    states = {0: 1.0}
    missed = 0.0
    for seen in range(TOTAL):
        after: dict[int, float] = {}
        for found, probability in steps(states, robust=robust, seen=seen):
            low, high = intervals[found, seen + 1]
            if low - 1e-9 <= robust / TOTAL <= high + 1e-9:
                after[found] = after.get(found, 0.0) + probability
            else:
                missed += probability
        states = after
    return missed


def of(interval: Callable[[int, int], tuple[float, float]]) -> Intervals:
    return {
        (found, seen): interval(found, seen)
        for seen in range(1, TOTAL + 1)
        for found in range(seen + 1)
    }


def test_looking_after_every_image_misses_the_truth_at_most_as_often_as_stated() -> None:
    intervals = of(lambda found, seen: anytime_interval(found, seen, total=TOTAL))
    worst = max(ever_missed(intervals, robust=robust) for robust in range(TOTAL + 1))
    assert 0.01 < worst <= 0.05, "above: not valid; below: far wider than it needs to be"


def test_once_all_images_are_seen_the_interval_is_the_accuracy() -> None:
    assert anytime_interval(7, 20, total=20) == (0.35, 0.35)
    assert anytime_interval(0, 0, total=20) == (0.0, 1.0)


def test_in_a_set_without_bound_it_is_the_interval_of_robbins() -> None:
    """Robbins 1970: all p with (n + 1) C(n, s) p^s (1 - p)^(n - s) > 1 - confidence."""
    low, high = anytime_interval(500, 1000, total=10**8)
    for end in (low, high):
        assert 1001 * stats.binom(1000, end).pmf(500) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(
    ("robust", "seen", "total", "message"),
    [
        (0, 5, 4, r"seen must be an integer in \[0, total = 4\], got 5"),
        (6, 5, 9, r"successes must be an integer in \[0, n = 5\], got 6"),
        (0, 0, 0, r"seen must be an integer in \[0, total = 0\], got 0"),
    ],
)
def test_counts_that_cannot_be_are_refused(
    robust: int, seen: int, total: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        anytime_interval(robust, seen, total=total)
