"""Training settings: what is refused, and how groups are dealt."""

from typing import Any

import pytest

from sat_ray.training_settings import TrainingSettings, local_groups


@pytest.mark.parametrize(("workers", "groups"), [(1, 4), (2, 2), (4, 1), (3, None), (8, None)])
def test_groups_are_dealt_evenly_or_refused(workers: int, groups: int | None) -> None:
    settings = TrainingSettings(global_batch_size=64, batchnorm_group_size=16)
    if groups is None:
        with pytest.raises(ValueError, match=rf"{workers} workers cannot share 4 BatchNorm groups .* allowed: a divisor of 4"):
            local_groups(settings, world_size=workers)
    else:
        assert local_groups(settings, world_size=workers) == groups


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
        ("objective", "mart"),
        ("trades_noise", 0.0),
        ("epsilon_warmup", 1.5),
        ("alpha_start", 0.0),
        ("sentinel_every", -1),
        ("sentinel_images", 0),
    ],
)
def test_a_setting_out_of_range_names_itself_and_what_is_allowed(field: str, value: float | str) -> None:
    with pytest.raises(ValueError, match=rf"training\.{field}.*allowed"):
        TrainingSettings(**{field: value})


def test_half_precision_of_the_other_kind_is_refused_with_the_one_that_is_meant() -> None:
    with pytest.raises(ValueError, match=r"training\.precision 'fp16' is unknown; did you mean bf16"):
        TrainingSettings(precision="fp16")


@pytest.mark.parametrize("other", [{"attack_steps": 2}, {"objective": "trades"}, {"sentinel_every": 10}])
def test_free_training_is_refused_beside_what_has_an_attack_of_its_own(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"training\.attack_replays is 4; allowed: 0, or attack_steps 1, objective cross_entropy and no"):
        TrainingSettings(attack_replays=4, **other)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [({}, 2), ({"attack_steps": 7}, 8), ({"objective": "trades", "attack_steps": 10}, 12), ({"attack_replays": 4}, 4)],
)
def test_passes_per_image_are_those_of_the_attack_and_the_update(changes: dict[str, Any], passes: int) -> None:
    assert TrainingSettings(**changes).passes_per_image() == passes
