"""Accuracy, Wilson intervals and McNemar's test against scipy and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sat_ray.evaluation.intervals import accuracy, mcnemar_p_value, wilson_interval


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 20_000))
    return draw(st.integers(0, n)), n


@given(counts(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy(count: tuple[int, int], confidence: float) -> None:
    successes, n = count
    expected = stats.binomtest(successes, n).proportion_ci(
        confidence_level=confidence, method="wilson"
    )
    assert wilson_interval(successes, n, confidence=confidence) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


@given(counts())
def test_wilson_interval_holds_the_accuracy_and_stays_in_the_unit_interval(
    count: tuple[int, int],
) -> None:
    low, high = wilson_interval(*count)
    assert 0.0 <= low <= accuracy(*count) <= high <= 1.0


def test_a_thousand_images_give_three_points_and_ten_thousand_give_one() -> None:
    for n, points in ((1_000, 3.0), (10_000, 1.0)):
        low, high = wilson_interval(n // 2, n)
        assert 50 * (high - low) == pytest.approx(points, abs=0.1)


def test_wilson_interval_is_exact_at_its_ends() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    assert wilson_interval(0, 50) == (0.0, pytest.approx(z2 / (50 + z2)))
    assert wilson_interval(50, 50) == (pytest.approx(50 / (50 + z2)), 1.0)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar_p_value(only_a, only_b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p_value(only_b, only_a) == mcnemar_p_value(only_a, only_b)


def test_mcnemar_survives_as_many_images_as_imagenet_has() -> None:
    assert mcnemar_p_value(3_000, 2_000) == pytest.approx(
        stats.binomtest(3_000, 5_000, 0.5).pvalue, rel=1e-6
    )
    assert mcnemar_p_value(20_000, 0) == 0.0


def test_accuracy_takes_whole_tensors_and_refuses_a_mean_of_batches() -> None:
    assert accuracy(torch.tensor(3), torch.tensor(4)) == 0.75
    with pytest.raises(TypeError, match=r"successes must be an integer, got .*0\.75"):
        accuracy(torch.tensor(0.75), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(1, 0), r"n must be an integer >= 1, got 0"),
        (lambda: accuracy(5, 4), r"successes must be an integer in \[0, n = 4\], got 5"),
        (lambda: wilson_interval(-1, 4), r"successes must be .* got -1"),
        (lambda: wilson_interval(1, 4, confidence=95), r"confidence must be .* got 95"),
        (lambda: wilson_interval(1, 4, confidence=math.nan), r"confidence must be .* got nan"),
        (lambda: mcnemar_p_value(-2, 1), r"only_a must be .* got -2"),
    ],
    ids=[
        "no images",
        "more successes than images",
        "negative",
        "percent",
        "nan",
        "negative discordance",
    ],
)
def test_bad_counts_are_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
