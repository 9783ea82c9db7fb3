"""Differences over seeds and images: closed forms, known components,
and how often the claims err.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sat_ray.report.leaderboard.holm import holm
from sat_ray.report.leaderboard.variation import (
    hierarchical_bootstrap,
    mean_squares,
    mixed_difference,
    paired,
)

Verdicts = NDArray[np.bool_]
LEVEL = 0.05


def layout(
    rng: np.random.Generator, *, seeds: int, images: int, mean: float, deviations: Sequence[float]
) -> NDArray[np.float64]:
    """Draw a two-way layout with known components: mean + a_s + b_i + e_si."""
    a, b, e = deviations
    return (
        mean
        + rng.normal(0, a, (seeds, 1))
        + rng.normal(0, b, (1, images))
        + rng.normal(0, e, (seeds, images))
    )


def family(
    rng: np.random.Generator,
    *,
    seeds: int,
    images: int,
    skill: float,
    taste: float,
    others: int = 5,
) -> list[Verdicts]:
    """Draw verdicts (seeds, images) of relu and of others that are no better: each with skilled
    seeds and liked images of its own.
    """
    hardness = rng.normal(0, 1, images)

    def one() -> Verdicts:
        margin = (
            hardness
            + rng.normal(0, taste, images)
            + rng.normal(0, skill, (seeds, 1))
            + rng.normal(0, 1, (seeds, images))
        )
        return np.asarray(margin > 0)

    return [one() for _ in range(1 + others)]


@pytest.mark.parametrize("seeds", [3, 10])
def test_the_bootstraps_variance_has_its_closed_form(seeds: int) -> None:
    table = layout(
        np.random.default_rng(seeds), seeds=seeds, images=60, mean=0.1, deviations=(0.05, 0.3, 0.2)
    )
    expected = (
        sum(mean_squares(table)) / table.size
    )  # with S - 1 and N - 1 draws: one mean square per source
    found = float(hierarchical_bootstrap(table, resamples=20_000).var())
    assert found == pytest.approx(expected, rel=0.04)


def test_mean_squares_recover_known_components() -> None:
    rng, seeds, images = np.random.default_rng(1), 4, 40
    truth = np.array([0.3, 0.5, 0.4]) ** 2
    tables = (
        layout(rng, seeds=seeds, images=images, mean=0, deviations=(0.3, 0.5, 0.4))
        for _ in range(800)
    )
    squares = np.mean([mean_squares(table) for table in tables], axis=0)
    expected = [truth[2] + images * truth[0], truth[2] + seeds * truth[1], truth[2]]
    assert squares == pytest.approx(expected, rel=0.08)


def test_where_images_agree_it_is_students_test_over_seeds() -> None:
    rng = np.random.default_rng(2)
    baseline = np.stack([rng.permutation(np.arange(400) < k) for k in (160, 180, 170)])
    treatment = np.stack([rng.permutation(np.arange(400) < k) for k in (222, 230, 210)])
    while (
        mean_squares(paired(treatment, baseline))[1] > mean_squares(paired(treatment, baseline))[2]
    ):
        treatment = np.stack(
            [rng.permutation(row) for row in treatment]
        )  # until chance leaves nothing to the images
    found = mixed_difference(treatment, baseline)
    expected = stats.ttest_rel(treatment.mean(axis=1), baseline.mean(axis=1))
    assert found.image_error == 0.0
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)


def test_where_seeds_agree_the_images_alone_make_the_interval_and_nothing_is_claimed() -> None:
    baseline = np.tile(np.arange(500) < 200, (4, 1))
    treatment = np.tile(np.arange(500) < 300, (4, 1))
    found = mixed_difference(treatment, baseline)
    assert (found.seed_error, found.p_value) == (
        0.0,
        1.0,
    )  # a seed that changes nothing is no evidence about seeds
    assert found.half_width == pytest.approx(1.95996 * np.sqrt(0.2 * 0.8 / 499), rel=1e-4)
    low, high = found.bootstrap
    assert high - low == pytest.approx(2 * found.half_width, rel=0.1)


def test_the_p_value_is_the_level_at_which_the_interval_reaches_zero() -> None:
    relu, other = family(
        np.random.default_rng(4), seeds=5, images=120, skill=0.2, taste=0.4, others=1
    )
    found = mixed_difference(other | (np.arange(120) < 12), relu)
    assert 0.0 < found.p_value < 1.0
    edge = mixed_difference(other | (np.arange(120) < 12), relu, confidence=1 - found.p_value)
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0.0, abs=1e-9)


def test_the_same_seeds_and_images_are_drawn_for_both_sides_every_time() -> None:
    relu, other = family(
        np.random.default_rng(5), seeds=4, images=90, skill=0.1, taste=0.5, others=1
    )
    forth, back = mixed_difference(other, relu), mixed_difference(relu, other)
    assert forth == mixed_difference(other, relu)
    assert (back.mean, back.bootstrap) == (
        -forth.mean,
        pytest.approx((-forth.bootstrap[1], -forth.bootstrap[0])),
    )
    assert mixed_difference(relu, relu).bootstrap == (0.0, 0.0)
    order = np.random.default_rng(6).permutation(90)
    assert mixed_difference(other[:, order], relu[:, order]).p_value == pytest.approx(forth.p_value)


def errors(*, seeds: int, skill: float, taste: float, trials: int) -> tuple[float, float]:
    """Return how often one comparison, and a family of five after Holm,
    claims a difference where there is none.
    """
    rng, single, families = np.random.default_rng(8), 0, 0
    for _ in range(trials):
        relu, *others = family(rng, seeds=seeds, images=200, skill=skill, taste=taste)
        p_values = [mixed_difference(other, relu, resamples=100).p_value for other in others]
        single += sum(p <= LEVEL for p in p_values)
        families += min(holm(p_values)) <= LEVEL
    return single / (5 * trials), families / trials


@pytest.mark.parametrize(
    ("seeds", "skill", "taste"),
    [(3, 0.3, 0.5), (10, 0.05, 1.0)],
    ids=["3 seeds that differ", "10 that hardly do"],
)
def test_without_a_difference_a_family_of_activations_errs_at_most_as_often_as_it_says(
    seeds: int, skill: float, taste: float
) -> None:
    single, families = errors(seeds=seeds, skill=skill, taste=taste, trials=120)
    assert 0.015 <= single <= 0.075  # 600 comparisons: near the level, not merely below it
    assert families <= 0.09  # 120 families at 5 %: 10 or fewer in 96 of 100 runs


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, hits, trials = np.random.default_rng(7), 0, 200
    for _ in range(trials):
        skill = (
            0.5
            + rng.normal(0, 0.03, size=(2, 5, 1))
            + rng.normal(0, 0.1, size=(2, 1, 150))
            + np.array([0.1, 0.0])[:, None, None]
        )
        treatment, baseline = rng.random((2, 5, 150)) < skill
        found = mixed_difference(treatment, baseline, resamples=100)
        hits += found.low <= 0.1 <= found.high
    assert 0.90 <= hits / trials <= 0.99


def test_shapes_and_settings_that_do_not_fit_are_refused() -> None:
    some = np.zeros((3, 5), dtype=np.bool_)
    with pytest.raises(ValueError, match=r"must have one shape .*, got \(3, 5\) and \(3, 4\)"):
        mixed_difference(some, some[:, :4])
    with pytest.raises(ValueError, match="S >= 2"):
        mixed_difference(some[:1], some[:1])
    with pytest.raises(ValueError, match="resamples must be at least 100, got 10"):
        mixed_difference(some, some, resamples=10)
    with pytest.raises(ValueError, match=r"below 1, got 1\.0"):
        mixed_difference(some, some, confidence=1.0)
