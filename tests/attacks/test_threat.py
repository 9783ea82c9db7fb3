"""Properties of the two threat models, for any image, any point and any radius."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch import Tensor

from sat_ray.attacks import AttackSpec
from sat_ray.threat import ThreatModel, as_255ths
from sat_ray.utils.randomness import Randomness, coin

SHAPE = (2, 1, 2, 3)
pixels = st.floats(0, 1, width=32)
images = hnp.arrays("float32", SHAPE, elements=pixels).map(torch.from_numpy)
points = hnp.arrays("float32", SHAPE, elements=st.floats(-50, 50, width=32)).map(torch.from_numpy)
unit_cubes = hnp.arrays("float32", SHAPE, elements=st.floats(-1, 1, width=32)).map(torch.from_numpy)
threat_models = st.builds(ThreatModel, st.sampled_from(["linf", "l2"]), st.floats(1e-3, 1.0))
BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each image, in float64."""
    return (a.double() * b.double()).flatten(1).sum(dim=1)


def into_unit_ball(v: Tensor, norm: str) -> Tensor:
    """Shrink each image of v into the unit ball of the norm."""
    flat = v.double().flatten(1)
    length = flat.abs().amax(dim=1) if norm == "linf" else flat.norm(dim=1)
    return v.double() / length.clamp_min(1.0).view(-1, 1, 1, 1)


@given(threat_models, images, points)
def test_a_projected_point_is_always_allowed(
    threat_model: ThreatModel, x: Tensor, far: Tensor
) -> None:
    projected = threat_model.project(far, x)
    delta = (projected.double() - x.double()).flatten(1)
    length = delta.abs().amax(dim=1) if threat_model.norm == "linf" else delta.norm(dim=1)
    assert bool((length <= threat_model.epsilon + 1e-6).all())
    assert bool(((projected >= 0) & (projected <= 1)).all())
    assert bool(threat_model.contains(projected, x).all())


@given(threat_models, images, points)
def test_projecting_twice_changes_nothing(
    threat_model: ThreatModel, x: Tensor, far: Tensor
) -> None:
    once = threat_model.project(far, x)
    twice = threat_model.project(once, x)
    if threat_model.norm == "linf":
        assert torch.equal(once, twice)
    else:
        torch.testing.assert_close(once, twice, rtol=0, atol=2e-7)


@given(threat_models, images, unit_cubes)
def test_interior_points_stay_put_bit_for_bit(
    threat_model: ThreatModel, x: Tensor, direction: Tensor
) -> None:
    inside = x + 0.99 * threat_model.epsilon * into_unit_ball(direction, threat_model.norm).float()
    inside = inside.clamp(0, 1)
    assert torch.equal(threat_model.project(inside, x).view(torch.int32), inside.view(torch.int32))


@given(threat_models, images, points)
def test_a_point_beyond_the_ball_is_moved_onto_its_edge_or_the_box(
    threat_model: ThreatModel, x: Tensor, far: Tensor
) -> None:
    moved = threat_model.project(far, x)
    outside = ~threat_model.contains(far, x, tolerance=0.0)
    on_edge = (threat_model.distance(moved, x) - threat_model.epsilon).abs() < 2e-6
    in_box_face = ((moved == 0) | (moved == 1)).flatten(1).any(dim=1)
    assert bool((on_edge | in_box_face)[outside].all())


def test_linf_projection_takes_each_pixel_to_the_nearest_allowed_value() -> None:
    x = torch.tensor([0.5, 0.5, 0.5, 0.1, 0.9, 0.0]).view(1, 1, 2, 3)
    far = torch.tensor([0.9, 0.0, 0.6, -1.0, 2.0, 0.1]).view(1, 1, 2, 3)
    expected = torch.tensor([0.75, 0.25, 0.6, 0.0, 1.0, 0.1]).view(1, 1, 2, 3)
    assert torch.equal(ThreatModel("linf", 0.25).project(far, x), expected)


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
def test_l2_projections_and_starts_of_large_images_are_allowed(epsilon: float) -> None:
    threat_model = ThreatModel("l2", epsilon)
    noise = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(
        4, 3, 224, 224, generator=noise
    )  # away from the box, which would shorten the perturbation
    far = x + torch.randn(x.shape, generator=noise)
    assert bool(threat_model.contains(threat_model.project(far, x), x).all())
    assert bool(
        threat_model.contains(threat_model.random_start(x, Randomness.of(0, range(4))), x).all()
    )


@given(threat_models, unit_cubes, unit_cubes)
def test_steepest_ascent_beats_every_other_step_of_the_unit_ball(
    threat_model: ThreatModel, gradient: Tensor, other: Tensor
) -> None:
    best = threat_model.steepest_ascent(gradient)
    flat = gradient.double().flatten(1)
    dual_norm = flat.abs().sum(dim=1) if threat_model.norm == "linf" else flat.norm(dim=1)
    torch.testing.assert_close(inner(gradient, best), dual_norm, rtol=1e-5, atol=1e-12)
    assert bool(
        (
            inner(gradient, best)
            >= inner(gradient, into_unit_ball(other, threat_model.norm)) - 1e-5
        ).all()
    )
    assert bool((into_unit_ball(best, threat_model.norm) - best).abs().max() < 1e-6)


@BOTH
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1.0, 1e25])
def test_steepest_ascent_does_not_depend_on_the_gradients_scale(norm: str, scale: float) -> None:
    gradient = torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 1, 2, 2)
    expected = (
        torch.tensor([1.0, -1.0, 0.0, 0.0])
        if norm == "linf"
        else torch.tensor([0.6, -0.8, 0.0, 0.0])
    )
    torch.testing.assert_close(
        ThreatModel(norm, 0.1).steepest_ascent(gradient * scale).flatten(), expected
    )


@BOTH
def test_a_zero_gradient_gives_a_zero_step_and_not_nan(norm: str) -> None:
    assert torch.equal(
        ThreatModel(norm, 0.1).steepest_ascent(torch.zeros(2, 1, 2, 2)), torch.zeros(2, 1, 2, 2)
    )


@given(threat_models, images, st.integers(0, 2**31))
def test_random_starts_are_clipped_into_ball_and_box(
    threat_model: ThreatModel, x: Tensor, seed: int
) -> None:
    start = threat_model.random_start(x, Randomness.of(seed, range(len(x))))
    assert bool(threat_model.contains(start, x, tolerance=5e-7).all())


def test_linf_starts_are_uniform_in_the_ball() -> None:
    x = torch.full((1000, 1, 2, 2), 0.5)
    delta = ThreatModel("linf", 0.1).random_start(x, Randomness.of(0, range(1000))) - x
    for pixel in delta.flatten(1).T:
        assert stats.kstest(pixel.numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert 0.0995 < delta.abs().amax() <= 0.1 + 1e-6
    assert abs(torch.corrcoef(delta.flatten(1).T) - torch.eye(4)).max() < 0.1


def test_l2_starts_are_uniform_in_the_ball() -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    delta = (
        (ThreatModel("l2", 0.2).random_start(x, Randomness.of(0, range(4000))) - x)
        .flatten(1)
        .double()
    )
    radius = delta.norm(dim=1)
    # in d dimensions the share of the ball's volume within radius r is (r / epsilon) ** d
    assert stats.kstest(((radius / 0.2) ** 4).numpy(), "uniform").pvalue > 1e-3
    direction = delta / radius[:, None]
    assert direction.mean(dim=0).abs().max() < 0.05
    torch.testing.assert_close(
        direction.T @ direction / 4000, torch.eye(4, dtype=torch.float64) / 4, rtol=0, atol=0.02
    )


@BOTH
def test_a_start_does_not_depend_on_the_rest_of_the_batch(norm: str) -> None:
    threat_model, ids = ThreatModel(norm, 0.1), torch.tensor([7, 3, 11, 5])
    x = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    together = threat_model.random_start(x, Randomness(1, ids))
    for row in range(4):
        assert torch.equal(
            threat_model.random_start(x[row : row + 1], Randomness(1, ids[row : row + 1]))[0],
            together[row],
        )


def test_one_coin_is_tossed_per_image_not_per_batch() -> None:
    heads = coin(Randomness.of(0, range(2000)), probability=0.2, purpose="clean start")
    assert 340 < int(heads.sum()) < 460
    assert torch.equal(
        heads[100:200],
        coin(Randomness.of(0, range(100, 200)), probability=0.2, purpose="clean start"),
    )


def test_contains_refuses_nan_the_ball_and_the_box_image_by_image() -> None:
    x = torch.full((5, 1, 1, 2), 0.95)
    x_adv = x.clone()
    x_adv[1, 0, 0, 0] = math.nan
    x_adv[2, 0, 0, 1] += 0.11
    x_adv[3, 0, 0, 1] -= 0.101
    x_adv[4, 0, 0, 1] -= 0.0999
    assert ThreatModel("linf", 0.1).contains(x_adv, x).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("norm", "epsilon", "message"),
    [("linf", 8, "did you mean 8/255"), ("linf", 1.0000001, "got 1.0000001;"),
     ("linf", 0.0, "epsilon"), ("l2", -1.0, "epsilon"), ("l2", math.nan, "epsilon"),
     ("l2", math.inf, "epsilon"), ("linf", "8/255", "epsilon"), ("l1", 0.1, "linf or l2")],
)  # fmt: skip
def test_a_radius_or_norm_that_makes_no_sense_is_refused(
    norm: str, epsilon: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ThreatModel(norm, epsilon)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (1.0, "255/255"),
        (0.5 / 255, "0.5/255"),
        (0.031, "0.031"),
        (0.123, "0.123"),
    ],
)
def test_epsilon_is_printed_in_255ths_only_where_it_is_one(value: float, text: str) -> None:
    assert as_255ths(value) == text
    assert str(ThreatModel("linf", value)) == f"linf {text}"
    measured = float(torch.tensor(value, dtype=torch.float32))
    assert as_255ths(measured, rounding=1e-7) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.5"), (128 / 255, "128/255"), (1.0, "1"), (3.0, "3"), (0.025, "0.025"), (0.2, "0.2")],
)
def test_l2_lengths_are_printed_as_the_field_quotes_them(value: float, text: str) -> None:
    threat_model = ThreatModel("l2", value)
    assert str(threat_model) == f"l2 {text}"
    assert f"1 steps of {text}," in str(
        AttackSpec(threat_model=threat_model, steps=1, step_size=value)
    )
