"""What a sweep will cost: operations as torchvision publishes them,
hours and bytes as computed by hand.
"""

from typing import Any

import pytest
from configs import changed
from torchvision.models import EfficientNet_B0_Weights, ResNet18_Weights, ResNet50_Weights

from sat_ray.data.sources.registry import dataset_source
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.cost.estimate import (
    UNMEASURED,
    costs,
    forward_operations,
    forwards,
    forwards_per_image,
    passes_of,
)
from sat_ray.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", ResNet18_Weights.DEFAULT),
        ("resnet50", ResNet50_Weights.IMAGENET1K_V1),
        ("efficientnet_b0", EfficientNet_B0_Weights.DEFAULT),
    ],
)
def test_the_operations_of_a_forward_pass_are_the_published_ones(name: str, published: Any) -> None:
    """Published: multiplications with their additions, in units of 10**9 to three digits,
    and parameters.
    """
    config = changed("imagenet_resnet50", model={"name": name, "zero_gamma": False})
    operations, parameters = forward_operations(config, (3, 224, 224), classes=1000)
    assert operations / 2e9 == pytest.approx(published.meta["_ops"], abs=6e-4)
    assert parameters == published.meta["num_params"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 2 + 3),
        ({"attack_steps": 10}, 20 + 3),
        ({"objective": "trades", "attack_steps": 10}, 1 + 20 + 6),
        ({"objective": "mart", "attack_steps": 10}, 20 + 6),
        ({"awp_gamma": 0.01}, 2 + 3 + 3),
        ({"objective": "trades", "attack_steps": 10, "awp_gamma": 0.01}, 1 + 20 + 6 + 6),
        ({"attack_replays": 4}, 4 * 3),
    ],
)
def test_an_update_is_three_forward_passes_and_a_step_of_an_attack_two(
    fields: dict[str, Any], expected: int
) -> None:
    assert forwards_per_image(TrainingSettings(**fields)) == expected


def test_hours_follow_from_the_measured_rate() -> None:
    """1,271,167 images, 100 epochs, 30 models at 1,500 images/s; a pass of the evaluation is 2 of
    an update's 5 forward passes.
    """
    config = changed("imagenet_resnet50", resources={"images_per_second": 1500.0})
    source = dataset_source("imagenet")
    passes = passes_of(config, source)
    training = 1_271_167 * 100 * 30 / 1500 / 3600
    evaluation = 50_000 * 3 * (201 * 2 * 12) * 2 / 5 / 1500 / 3600
    shown = costs(config, source, passes)["estimated accelerator-hours"]
    assert f"training {training:.3g}" in shown
    assert forwards(config, passes)["training"] == 1_271_167 * 100 * 30 * 5
    per_model = passes["evaluation"] / 50_000 / 3
    assert (
        per_model % (201 * 2) == 0
        and f"evaluation {evaluation * per_model / (201 * 2 * 12):.3g}" in shown
    )


def test_the_price_is_that_of_the_hours() -> None:
    fields = {
        "resources": {"images_per_second": 1500.0},
        "cost": {"price_per_accelerator_hour": 3.5, "currency": "EUR"},
    }
    config = changed("imagenet_resnet50", **fields)
    source = dataset_source("imagenet")
    shown = costs(config, source, passes_of(config, source))
    hours = float(shown["estimated accelerator-hours"].split()[0])
    price = float(shown["estimated price"].split()[0].replace(",", ""))
    assert shown["estimated price"].startswith(f"{price:,.2f} EUR") and price == pytest.approx(
        3.5 * hours, rel=0.001
    )
    free = changed("imagenet_resnet50", resources={"images_per_second": 1500.0})
    assert "estimated price" not in costs(free, source, passes_of(free, source))


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({"ema_decay": 0.9}, 4),
        ({"optimizer": "adamw"}, 4),
        ({"optimizer": "adamw", "guard_every": 10}, 7),
    ],
)
def test_storage_counts_images_weights_and_states(fields: dict[str, Any], copies: int) -> None:
    config = changed("cifar10_resnet18", training={"guard_every": 0} | fields)
    shown = costs(config, dataset_source("cifar10"), passes_of(config, dataset_source("cifar10")))
    models = len({(one.activation, one.attacker_activation) for one in config.search.points()}) * 3
    trials = len(config.search.points())
    weights = (models + trials + 2 * copies) * 11_173_962 * 4
    assert (
        shown["estimated storage"].startswith("184 MB of images, ")
        and f"{weights / 1e9:.3g} GB of weights" in shown["estimated storage"]
    )
    assert shown["estimated accelerator-hours"] == UNMEASURED


def test_what_cannot_be_known_without_the_images_is_left_out() -> None:
    config = changed("cifar10_resnet18", data={"dataset": "image_folder"})
    assert costs(config, dataset_source("image_folder"), {}) == {
        "estimated accelerator-hours": UNMEASURED
    }


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"resources\.images_per_second must be a number from 0 to .*, got -1"
    ):
        ResourceSettings(images_per_second=-1.0)
