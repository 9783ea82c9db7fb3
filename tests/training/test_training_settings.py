"""Training settings: what is refused, and how groups are dealt."""

from typing import Any

import pytest

from sat_ray.training.settings import TrainingSettings, check_even, groups_of


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_groups_are_dealt_so_that_each_has_one_owner_and_shares_differ_by_one_at_most(
    workers: int,
) -> None:
    settings = TrainingSettings(global_batch_size=64, batchnorm_group_size=16)
    shares = [
        list(range(4))[groups_of(settings, rank=rank, world_size=workers)]
        for rank in range(workers)
    ]
    assert [group for share in shares for group in share] == [0, 1, 2, 3]
    assert max(map(len, shares)) - min(map(len, shares)) == (workers == 3)


def test_more_workers_than_groups_and_uneven_shares_that_nobody_needs_are_refused() -> None:
    settings = TrainingSettings(global_batch_size=64, batchnorm_group_size=16)
    with pytest.raises(
        ValueError, match=r"workers must be at most 4, as they share 4 BatchNorm groups .*, got 8"
    ):
        groups_of(settings, rank=0, world_size=8)
    for workers in (3, 8):
        with pytest.raises(
            ValueError,
            match=rf"must be a divisor of 4, as they share 4 BatchNorm .*, got {workers}",
        ):
            check_even(settings, world_size=workers)
    check_even(settings, world_size=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("alpha_learning_rate", -1.0),
        ("momentum", 1.0),
        ("label_smoothing", -0.1),
        ("weight_decay", -1.0),
        ("gradient_clip", -1.0),
        ("ema_decay", 1.0),
        ("batchnorm_group_size", 24),
        ("objective", "mert"),
        ("optimizer", "adam"),
        ("adamw_beta1", 1.0),
        ("adamw_beta2", -0.1),
        ("adamw_eps", 0.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.01),
        ("mart_weight", 0.0),
        ("awp_gamma", -0.01),
        ("awp_start", 1.5),
        ("trades_noise", 0.0),
        ("epsilon_warmup", 1.5),
        ("alpha_start", 0.0),
        ("guard_every", -1),
        ("guard_images", 0),
        ("resize_start", 7),
        ("resize_start", -8),
        ("resize_ramp", 1.1),
        ("resize_step", 0),
    ],
)
def test_a_setting_out_of_range_names_itself_and_what_is_allowed(
    field: str, value: float | str
) -> None:
    with pytest.raises(ValueError, match=rf"training\.{field} (must be .*, got|.* is unknown)"):
        TrainingSettings(**{field: value})


def test_half_precision_of_the_other_kind_is_refused_with_the_one_that_is_meant() -> None:
    with pytest.raises(
        ValueError, match=r"training\.precision 'fp16' is unknown; did you mean bf16"
    ):
        TrainingSettings(precision="fp16")


@pytest.mark.parametrize(
    "other",
    [{"attack_steps": 2}, {"objective": "trades"}, {"objective": "mart"}, {"guard_every": 10}],
)
def test_free_training_is_refused_beside_what_has_an_attack_of_its_own(
    other: dict[str, object],
) -> None:
    with pytest.raises(
        ValueError,
        match=r"training\.attack_replays must be 0 where .* or there is a guard, got 4",
    ):
        TrainingSettings(attack_replays=4, **other)


def test_weight_perturbation_is_refused_in_free_training() -> None:
    with pytest.raises(
        ValueError, match=r"training\.awp_gamma must be 0 with attack_replays, .*, got 0\.01"
    ):
        TrainingSettings(awp_gamma=0.01, attack_replays=4)


@pytest.mark.parametrize("other", [{"objective": "trades"}, {"attack_replays": 2}])
def test_label_smoothing_of_an_attack_without_labels_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"training\.attack_label_smoothing must be 0 where .*, got 0\.1"
    ):
        TrainingSettings(attack_label_smoothing=0.1, **other)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 2),
        ({"attack_steps": 7}, 8),
        ({"objective": "trades", "attack_steps": 10}, 12),
        ({"objective": "mart", "attack_steps": 10}, 12),
        ({"awp_gamma": 0.01}, 3),
        ({"objective": "trades", "attack_steps": 10, "awp_gamma": 0.01}, 14),
        ({"attack_replays": 4}, 4),
    ],
)
def test_passes_per_image_are_those_of_the_attack_and_the_update(
    changes: dict[str, Any], passes: int
) -> None:
    assert TrainingSettings(**changes).passes_per_image() == passes
