"""Learning-rate schedules against their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ray.training.loop import TrainingSettings
from sat_ray.training.optimization.schedules import (
    SCHEDULES,
    alpha_factor,
    epsilon_factor,
    learning_rate_factor,
)


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
def test_without_warm_up_each_schedule_is_its_closed_form_over_ten_epochs(
    schedule: str, epoch: float, factor: float
) -> None:
    assert learning_rate_factor(epoch, schedule=schedule, epochs=10) == pytest.approx(
        factor, abs=1e-12
    )


@pytest.mark.parametrize("schedule", sorted(set(SCHEDULES) - {"one_cycle"}))
@pytest.mark.parametrize(("epoch", "factor"), [(0.0, 0.0), (0.5, 0.25), (1.5, 0.75)])
def test_warm_up_grows_linearly_from_zero_whatever_follows(
    schedule: str, epoch: float, factor: float
) -> None:
    assert learning_rate_factor(
        epoch, schedule=schedule, epochs=10, warmup_epochs=2.0
    ) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)]
)
def test_after_warm_up_the_schedule_starts_at_its_peak_and_uses_the_epochs_that_remain(
    schedule: str, middle: float
) -> None:
    assert learning_rate_factor(
        2.0, schedule=schedule, epochs=10, warmup_epochs=2.0
    ) == pytest.approx(1.0)
    assert learning_rate_factor(
        6.0, schedule=schedule, epochs=10, warmup_epochs=2.0
    ) == pytest.approx(middle)


@pytest.mark.parametrize("warmup", [0.3, 2.5])
def test_one_cycle_is_that_of_torch(warmup: float) -> None:
    """Torch's OneCycleLR moves by whole steps: 99 of them here,
    its rise ending at step 99 * warmup / 10 - 1.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=100, pct_start=(99 * warmup / 10 + 1) / 100
    )
    for step in range(100):
        ours = learning_rate_factor(
            step * 10 / 99, schedule="one_cycle", epochs=10, warmup_epochs=warmup
        )
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-12), step
        optimizer.step()
        if step < 99:
            theirs.step()


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)])
def test_epsilon_rises_in_a_straight_line_and_stays(progress: float, factor: float) -> None:
    assert epsilon_factor(progress, warmup=0.2) == pytest.approx(factor)
    assert epsilon_factor(progress, warmup=0.0) == 1.0


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.01), (0.25, 0.1), (0.5, 1.0), (0.75, 1.0)]
)
def test_alpha_moves_in_a_straight_line_of_its_logarithm_and_stays(
    progress: float, factor: float
) -> None:
    assert alpha_factor(progress, start=0.01, ramp=0.5) == pytest.approx(factor)
    assert alpha_factor(progress, start=1 / 0.01, ramp=0.5) == pytest.approx(1 / factor)
    assert alpha_factor(progress, start=0.01, ramp=0.0) == 1.0
    assert alpha_factor(progress, start=1.0, ramp=0.5) == 1.0


@given(
    schedule=st.sampled_from(SCHEDULES),
    epochs=st.integers(1, 100),
    warmup=st.floats(0, 20),
    share=st.floats(0, 1),
)
def test_the_factor_never_leaves_zero_to_one(
    schedule: str, epochs: int, warmup: float, share: float
) -> None:
    factor = learning_rate_factor(
        share * epochs, schedule=schedule, epochs=epochs, warmup_epochs=warmup
    )
    assert -1e-9 <= factor <= 1 + 1e-9


def test_an_unknown_schedule_suggests_the_closest_name() -> None:
    with pytest.raises(
        ValueError, match=r"training\.schedule 'cosin' is unknown; did you mean cosine\?"
    ):
        learning_rate_factor(0.0, schedule="cosin", epochs=1)
    with pytest.raises(ValueError, match="did you mean linear"):
        TrainingSettings(schedule="lineer")
