"""Learning-rate schedules against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_ray.schedules import SCHEDULES, learning_rate_factor
from sat_ray.training import TrainingSettings


@pytest.mark.parametrize(
    ("schedule", "epoch", "factor"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 7.3, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 2.5, (1 + math.sqrt(0.5)) / 2),
        ("cosine", 5.0, 0.5),
        ("cosine", 10.0, 0.0),
        ("step", 2.99, 1.0),
        ("step", 3.0, 0.1),
        ("step", 5.99, 0.1),
        ("step", 6.0, 0.01),
        ("step", 8.99, 0.01),
        ("step", 9.0, 0.001),
        ("linear", 0.0, 1.0),
        ("linear", 2.5, 0.75),
        ("linear", 10.0, 0.0),
    ],
)
def test_without_warm_up_each_schedule_is_its_closed_form_over_ten_epochs(schedule: str, epoch: float, factor: float) -> None:
    assert learning_rate_factor(epoch, schedule=schedule, epochs=10) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("epoch", "factor"), [(0.0, 0.0), (0.5, 0.25), (1.5, 0.75)])
def test_warm_up_grows_linearly_from_zero_whatever_follows(schedule: str, epoch: float, factor: float) -> None:
    assert learning_rate_factor(epoch, schedule=schedule, epochs=10, warmup_epochs=2.0) == pytest.approx(factor)


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_after_warm_up_the_schedule_starts_at_its_peak_and_uses_the_epochs_that_remain(schedule: str, middle: float) -> None:
    assert learning_rate_factor(2.0, schedule=schedule, epochs=10, warmup_epochs=2.0) == pytest.approx(1.0)
    assert learning_rate_factor(6.0, schedule=schedule, epochs=10, warmup_epochs=2.0) == pytest.approx(middle)


@given(
    schedule=st.sampled_from(SCHEDULES),
    epochs=st.integers(1, 100),
    warmup=st.floats(0, 20),
    share=st.floats(0, 1),
)
def test_the_factor_never_leaves_zero_to_one(schedule: str, epochs: int, warmup: float, share: float) -> None:
    factor = learning_rate_factor(share * epochs, schedule=schedule, epochs=epochs, warmup_epochs=warmup)
    assert -1e-9 <= factor <= 1 + 1e-9


def test_an_unknown_schedule_suggests_the_closest_name() -> None:
    with pytest.raises(ValueError, match=r"training\.schedule 'cosin' is unknown; did you mean cosine\?"):
        learning_rate_factor(0.0, schedule="cosin", epochs=1)
    with pytest.raises(ValueError, match="did you mean linear"):
        TrainingSettings(schedule="lineer")
