"""The calculated power against simulated sweeps:
how often the test of the report claims a planted difference.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sat_ray.report.leaderboard.power import (
    POWER,
    Deviations,
    chance_to_see,
    planned_deviations,
    smallest_visible,
    visible_difference,
    visible_in,
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


def truth(*, gain: float, skill: float, taste: float) -> tuple[float, Deviations]:
    """Return the difference and the deviations of `sweep`,
    estimated from far more seeds and images than a sweep has.
    """
    rng = np.random.default_rng(0)
    table = paired(*sweep(rng, seeds=300, images=3000, gain=gain, skill=skill, taste=taste))
    of_seeds, of_images, rest = mean_squares(table)
    parts = ((of_seeds - rest) / table.shape[1], (of_images - rest) / table.shape[0], rest)
    seeds, images, left = (float(np.sqrt(max(0.0, part))) for part in parts)
    return float(table.mean()), Deviations(seeds=seeds, images=images, rest=left)


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
    difference, deviations = truth(gain=gain, skill=skill, taste=taste)
    seed_error, image_error = deviations.errors(seeds=seeds, images=images)
    expected = chance_to_see(
        difference, seed_error=seed_error, image_error=image_error, seeds=seeds
    )
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


def test_the_smallest_visible_difference_is_seen_with_the_power_that_was_asked_for() -> None:
    errors = {"seed_error": 0.008, "image_error": 0.006}
    found = smallest_visible(**errors, seeds=6, comparisons=4)
    assert chance_to_see(found, **errors, seeds=6, comparisons=4) == pytest.approx(POWER, abs=1e-6)
    assert chance_to_see(-found, **errors, seeds=6, comparisons=4) == pytest.approx(POWER, abs=1e-6)


def test_without_a_difference_the_test_claims_one_as_often_as_its_level_says() -> None:
    assert chance_to_see(0.0, seed_error=0.01, image_error=0.0, seeds=5) == pytest.approx(
        0.05, abs=2e-3
    )
    assert chance_to_see(0.0, seed_error=0.0, image_error=0.01, seeds=5) == pytest.approx(
        0.05, abs=1e-6
    )


def test_more_seeds_more_images_and_fewer_comparisons_see_more() -> None:
    plan = planned_deviations(
        accuracy=0.8,
        seed_deviation=0.015,
        seed_correlation=0.0,
        verdict_correlation=0.6,
        lasting=0.3,
    )
    base = visible_difference(plan, seeds=5, images=360, comparisons=6)
    assert visible_difference(plan, seeds=10, images=360, comparisons=6) < base
    assert visible_difference(plan, seeds=5, images=900, comparisons=6) < base
    assert visible_difference(plan, seeds=5, images=360, comparisons=2) < base
    closer = planned_deviations(
        accuracy=0.8,
        seed_deviation=0.015,
        seed_correlation=0.5,
        verdict_correlation=0.8,
        lasting=0.3,
    )
    assert visible_difference(closer, seeds=5, images=360, comparisons=6) < base


def test_planned_deviations_are_those_of_verdicts_drawn_with_them() -> None:
    rng, seeds, images = np.random.default_rng(3), 400, 400
    p, correlation = 0.7, 0.4
    joint = p * p + correlation * p * (1 - p)
    cells = [joint, p - joint, p - joint, 1 - 2 * p + joint]
    drawn = rng.choice(
        4, p=cells, size=(seeds, images)
    )  # both robust, one alone, the other alone, none
    of_seeds, of_images, rest = mean_squares(paired(drawn < 2, drawn % 2 == 0))
    plan = planned_deviations(
        accuracy=p,
        seed_deviation=0.0,
        seed_correlation=0.0,
        verdict_correlation=correlation,
        lasting=0.0,
    )
    assert rest == pytest.approx(plan.rest**2, rel=0.02)
    assert of_seeds == pytest.approx(rest, rel=0.2) and of_images == pytest.approx(rest, rel=0.2)


def test_what_a_finished_sweep_could_see_comes_from_its_own_noise() -> None:
    rng = np.random.default_rng(4)
    found = [
        mixed_difference(*sweep(rng, seeds=5, images=300, gain=0.2, skill=0.1, taste=0.3))
        for _ in range(6)
    ]
    _, deviations = truth(gain=0.2, skill=0.1, taste=0.3)
    expected = visible_difference(deviations, seeds=5, images=300, comparisons=6)
    assert visible_in(found, seeds=5) == pytest.approx(expected, rel=0.35)
    assert visible_in([], seeds=5) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 1.2}, r"accuracy must be in \[0, 1\], got 1.2"),
        ({"lasting": -0.1}, r"lasting must be in \[0, 1\], got -0.1"),
        ({"seed_deviation": -1.0}, "seed_deviation must be at least 0"),
    ],
)
def test_plans_outside_their_range_are_refused(change: dict[str, float], message: str) -> None:
    plan = {
        "accuracy": 0.8,
        "seed_deviation": 0.01,
        "seed_correlation": 0.0,
        "verdict_correlation": 0.5,
        "lasting": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        planned_deviations(**(plan | change))


def test_fewer_than_two_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must be at least 2"):
        chance_to_see(0.1, seed_error=0.01, image_error=0.01, seeds=1)
