"""The demonstrations of docs/explanation/five-ways.md.

Each claim is higher than the truth beside it, and sat_ray refuses or notices.
"""

import five_ways
import pytest

from sat_ray.attacks import AttackSpec
from sat_ray.data.split import Split
from sat_ray.evaluation.card import CardSettings, robustness_card
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized


@pytest.fixture(scope="module")
def shown() -> tuple[Normalized, Split, dict[str, tuple[float, float]]]:
    """Train and demonstrate as the script does, with fewer and longer steps."""
    five_ways.STEPS, five_ways.STEP_SIZE = 40, 8 / 255
    train, others = five_ways.digits()
    model = five_ways.trained(train)
    return model, others, {name: way(model, others) for name, way in five_ways.WAYS.items()}


def test_each_of_the_five_claims_more_than_is_true(
    shown: tuple[Normalized, Split, dict[str, tuple[float, float]]],
) -> None:
    _, others, pairs = shown
    assert len(pairs) == 5
    for name, (claimed, true) in pairs.items():
        assert claimed > true > 0.2, name
    gaps = {name: claimed - true for name, (claimed, true) in pairs.items()}
    for name in (
        "the logits saturate the loss",
        "the attack stops too early",
        "epsilon is measured after normalisation",
    ):
        assert gaps[name] > 0.15, name
    assert len(others) == 150


def test_what_the_page_says_would_refuse_or_notice_them_does(
    shown: tuple[Normalized, Split, dict[str, tuple[float, float]]],
) -> None:
    model, others, _ = shown
    attack = AttackSpec(threat_model=five_ways.BALL, steps=40, step_size=8 / 255)
    with pytest.raises(ValueError, match="train mode"):
        evaluate(model.train(), others.images, others.labels, others.image_ids, attacks=[attack])
    model.eval()
    with pytest.raises(ValueError, match="out of reach"):
        AttackSpec(threat_model=five_ways.BALL, steps=1, step_size=8 / 255)
    small = CardSettings(images=24, restarts=2, cascade_steps=3, cascade_queries=5)
    card = robustness_card(
        five_ways.Confident(model).eval(), others, attack=attack, settings=small, slots=24
    )
    assert card["verdict"] == "FLAG" and any(
        reason.startswith("the gradient is not zero") for reason in card["reasons"]
    )
