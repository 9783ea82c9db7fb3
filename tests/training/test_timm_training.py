"""Networks of timm train for real on the digits: they learn, and a resumed run is the same run."""

from typing import Any

import pytest
import torch
from trainings import BALL, SMALL, arguments_of_fit, assert_same_bits, enlarged, kept_states

from sat_ray.data.split import Split
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingState, fit

NETWORKS: dict[str, dict[str, Any]] = {
    "test_vit": {"patch_size": 2},
    "test_convnext": {"patch_size": 1},
}
KINDS = (  # of about 0.3 to 5 million parameters, for images of 32 pixels
    *("test_vit_relpos", "test_convnext2", "test_resnet", "test_efficientnet", "test_nfnet"),
    *("test_efficientnet_gn", "test_byobnet", "test_mambaout", "test_coatnet"),
    *("resnet10t", "regnety_002", "mobilenetv3_small_050"),
)


def network(name: str, activation: str = "silu", *, side: int = 8) -> Normalized:
    """Build a tiny network of timm for the digits, the same weights every time."""
    return build_model(
        f"timm:{name}",
        activation=activation,
        num_classes=10,
        in_channels=1,
        mean=(0.3,),
        std=(0.35,),
        image_size=(side, side),
        seed=0,
        **NETWORKS.get(name, {}),
    )


@pytest.mark.parametrize(
    ("name", "images", "epochs"), [("test_convnext", 512, 3), ("test_vit", 1000, 5)]
)
def test_a_network_of_timm_learns_the_digits(
    name: str, images: int, epochs: int, digits: Split
) -> None:
    changes = {"optimizer": "adamw", "learning_rate": 2e-3, "epochs": epochs}
    reports = list(
        fit(
            network(name, "gelu"),
            digits.take(slice(0, images)),
            digits.take(slice(1000, 1064)),
            threat_model=ThreatModel("linf", 4 / 255),
            **arguments_of_fit(SMALL, changes),
        )
    )
    losses = [report.metrics["train/loss"] for report in reports]
    assert losses[-1] < 0.9 * losses[0]
    assert reports[-1].metrics["val/clean_accuracy"] > 0.4


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_network_trains_and_resumes_bit_for_bit(name: str, digits: Split) -> None:
    seen, every = kept_states()
    changes: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3, "epochs": 1}
    changes |= {"global_batch_size": 8, "batchnorm_group_size": 8}
    parts = (enlarged(digits.take(slice(at, at + count)), 4) for at, count in ((0, 16), (1000, 8)))
    images, held_out = parts

    def trained(model: Normalized, **more: Any) -> TrainingState:
        options = arguments_of_fit(SMALL, changes | more)
        return list(fit(model, images, held_out, threat_model=BALL, **options))[-1].state

    start = network(name, "smoothrelu_learned", side=32)
    weights = {key: one.clone() for key, one in start.state_dict().items()}
    whole = trained(start, **every)
    moved = {key for key, one in weights.items() if not torch.equal(one, whole.weights[key])}
    assert any(key.endswith(".beta") for key in moved) and len(moved) > len(weights) / 2
    again = network(name, "smoothrelu_learned", side=32)
    torch.nn.init.zeros_(next(again.parameters()))  # whatever the model held, the state decides
    assert_same_bits(trained(again, state=seen[0]), whole)
