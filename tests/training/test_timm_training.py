"""Networks of timm train for real on the digits: they learn, and a resumed run is the same run."""

from typing import Any

import pytest
import torch
from trainings import SMALL, arguments_of_fit, assert_same_bits, train

from sat_ray.data.split import Split
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingState, fit
from sat_ray.training.resume.checkpointing import pack_state, unpack_state

NETWORKS: dict[str, dict[str, Any]] = {
    "test_vit": {"patch_size": 2},
    "test_convnext": {"patch_size": 1},
}


def network(name: str, activation: str = "silu") -> Normalized:
    """Build a tiny network of timm for the digits, the same weights every time."""
    return build_model(
        f"timm:{name}",
        activation=activation,
        num_classes=10,
        in_channels=1,
        mean=(0.3,),
        std=(0.35,),
        image_size=(8, 8),
        seed=0,
        **NETWORKS[name],
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


def test_a_resumed_training_of_a_network_of_timm_is_the_undisturbed_one(digits: Split) -> None:
    seen: list[TrainingState] = []
    changes: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3, "images": 96}
    whole = train(
        network("test_vit", "smoothrelu_learned"),
        digits,
        checkpoint_every=1,
        on_checkpoint=lambda state: seen.append(unpack_state(pack_state(state))),
        **changes,
    )[-1].state
    assert [(state.epoch, state.step) for state in seen][1:4] == [(0, 2), (0, 3), (1, 1)]
    for at in (1, 3):
        other = network("test_vit", "smoothrelu_learned")
        torch.nn.init.zeros_(other.body.head.weight)  # type: ignore[arg-type, union-attr]
        resumed = train(other, digits, state=seen[at], **changes)[-1].state
        assert_same_bits(resumed, whole)
