"""The calculated power against simulated sweeps:
how often the test of the report claims a planted difference.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from sat_ray.report.leaderboard.power import (
    POWER,
    chance_to_detect,
    detectable_in,
    smallest_detectable,
)
from sat_ray.report.leaderboard.variation import mean_squares, mixed_difference, paired

Verdicts = NDArray[np.bool_]


def sweep(
    rng: np.random.Generator, *, seeds: int, images: int, gain: float, skill: float, taste: float
) -> tuple[Verdicts, Verdicts]:
    """Draw verdicts (seeds, images) of an activation and of relu:
    robust where a margin is above 0.
    """
    hardness = rng.normal(0, 1, images)

    def side(shift: float) -> Verdicts:
        liked = rng.normal(0, taste, images)
        luck = rng.normal(0, skill, (seeds, 1))
        return np.asarray(hardness + liked + luck + rng.normal(0, 0.6, (seeds, images)) + shift > 0)

    return side(gain), side(0.0)


def truth(*, gain: float, skill: float, taste: float) -> tuple[float, list[float]]:
    """Return the difference and the variances of a, b and e of `sweep`.

    They are estimated from far more seeds and images than a sweep has.
    """
    rng = np.random.default_rng(0)
    table = paired(*sweep(rng, seeds=300, images=3000, gain=gain, skill=skill, taste=taste))
    of_seeds, of_images, rest = mean_squares(table)
    parts = ((of_seeds - rest) / table.shape[1], (of_images - rest) / table.shape[0], rest)
    return float(table.mean()), [max(0.0, part) for part in parts]


def errors(variances: list[float], *, seeds: int, images: int) -> dict[str, float]:
    """Return the standard errors that so many seeds and images make."""
    of_seeds, of_images, rest = variances
    return {
        "seed_error": (of_seeds / seeds + rest / (seeds * images)) ** 0.5,
        "image_error": (of_images / images) ** 0.5,
    }


@pytest.mark.parametrize(
    ("seeds", "images", "gain", "skill", "taste"),
    [
        (3, 360, 0.4, 0.06, 0.3),
        (5, 360, 0.25, 0.1, 0.3),
        (10, 900, 0.12, 0.08, 0.2),
        (10, 300, 0.2, 0.02, 0.8),
    ],
    ids=["3 seeds", "5 seeds", "10 seeds of many images", "images make the noise"],
)
def test_the_calculated_power_is_that_of_simulated_sweeps(
    seeds: int, images: int, gain: float, skill: float, taste: float
) -> None:
    difference, variances = truth(gain=gain, skill=skill, taste=taste)
    noise = errors(variances, seeds=seeds, images=images)
    expected = chance_to_detect(difference, **noise, seeds=seeds)
    rng, trials = np.random.default_rng(1), 300
    claims = 0
    for _ in range(trials):
        drawn = sweep(rng, seeds=seeds, images=images, gain=gain, skill=skill, taste=taste)
        claims += mixed_difference(*drawn, resamples=100).p_value <= 0.05
    assert 0.2 < expected < 0.95  # a power of 0 or 1 would agree with anything
    # three standard errors of the simulation, and 2 points for verdicts that are no normal numbers
    assert claims / trials == pytest.approx(
        expected, abs=3 * (expected * (1 - expected) / trials) ** 0.5 + 0.02
    )


def test_the_smallest_detectable_difference_is_seen_with_the_power_that_was_asked_for() -> None:
    noise = {"seed_error": 0.008, "image_error": 0.006}
    found = smallest_detectable(**noise, seeds=6, comparisons=4)
    assert chance_to_detect(found, **noise, seeds=6, comparisons=4) == pytest.approx(
        POWER, abs=1e-6
    )
    assert chance_to_detect(-found, **noise, seeds=6, comparisons=4) == pytest.approx(
        POWER, abs=1e-6
    )


def test_without_a_difference_the_test_claims_one_as_often_as_its_level_says() -> None:
    assert chance_to_detect(0.0, seed_error=0.01, image_error=0.0, seeds=5) == pytest.approx(
        0.05, abs=2e-3
    )
    assert chance_to_detect(0.0, seed_error=0.0, image_error=0.01, seeds=5) == pytest.approx(
        0.05, abs=1e-6
    )


def test_more_seeds_more_images_and_fewer_comparisons_detect_more() -> None:
    variances = [0.015**2, 0.04, 0.09]

    def smallest(*, seeds: int = 5, images: int = 360, comparisons: int = 6) -> float:
        noise = errors(variances, seeds=seeds, images=images)
        return smallest_detectable(**noise, seeds=seeds, comparisons=comparisons)

    base = smallest()
    assert max(smallest(seeds=10), smallest(images=900), smallest(comparisons=2)) < base


def test_what_a_finished_sweep_could_see_comes_from_its_own_noise() -> None:
    rng = np.random.default_rng(4)
    found = [
        mixed_difference(*sweep(rng, seeds=5, images=300, gain=0.2, skill=0.1, taste=0.3))
        for _ in range(6)
    ]
    _, variances = truth(gain=0.2, skill=0.1, taste=0.3)
    noise = errors(variances, seeds=5, images=300)
    expected = smallest_detectable(**noise, seeds=5, comparisons=6)
    assert detectable_in(found, seeds=5) == pytest.approx(expected, rel=0.35)
    assert detectable_in([], seeds=5) is None


def test_fewer_than_two_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        chance_to_detect(0.1, seed_error=0.01, image_error=0.01, seeds=1)
