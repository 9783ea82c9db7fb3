"""The robustness card: an honest model passes, every planted fraud is flagged or refused, and what it measures is what it says."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sat_ray.attacks import AttackSpec
from sat_ray.card import FLAG, PASS, CardSettings, robustness_card
from sat_ray.card.checks import judge
from sat_ray.card.evidence import accuracy_by_restart, sample, steps_curve
from sat_ray.data.split import Split
from sat_ray.evaluation import evaluate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel

LINF = ThreatModel("linf", 40 / 255)
CLAIM = AttackSpec(threat_model=LINF, steps=40, step_size=8 / 255)
SMALL = CardSettings(images=48, restarts=3, cascade_steps=15, cascade_queries=300)


class Wrapped(nn.Module):
    """A model with something in front of it or behind it."""

    def __init__(self, inner: nn.Module, *, before: Callable[[Tensor], Tensor] | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.before, self.scale = inner, before or (lambda x: x), scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(self.before(x)) * self.scale
        return logits


def quantised(x: Tensor) -> Tensor:
    """Round to 9 levels: the picture stays readable, the gradient is 0."""
    return (x * 8).round() / 8


def noisy(x: Tensor) -> Tensor:
    """Add noise at test time."""
    return x + 0.1 * torch.randn_like(x)


def card(model: Callable[[Tensor], Tensor], split: Split, settings: CardSettings = SMALL) -> dict[str, Any]:
    """Make a small card."""
    return robustness_card(model, split, attack=CLAIM, settings=settings, lanes=24)


def flagged(made: dict[str, Any]) -> set[str]:
    """Return the names of the failed checks."""
    return {check["name"] for check in made["checks"] if not check["passed"]}


@pytest.fixture(scope="module")
def honest(digits_model: Normalized, held_out: Split) -> dict[str, Any]:
    """Return the card of an honestly trained model."""
    return card(digits_model.eval(), held_out)


def test_an_honest_model_passes(honest: dict[str, Any]) -> None:
    assert honest["verdict"] == PASS, honest["reasons"]
    assert honest["n"] == 48 and len(honest["checks"]) == 12
    ladder = honest["ladder"]
    assert list(ladder) == ["clean", "noise", "pgd-10", "pgd-40", "cascade"]
    assert ladder["clean"] > 0.9 > 0.7 > ladder["pgd-40"] >= ladder["cascade"] > 0.1
    assert all(check["found"] and check["meaning"] for check in honest["checks"])


def test_saturated_logits_are_flagged(digits_model: Normalized, held_out: Split) -> None:
    made = card(Wrapped(digits_model, scale=1000.0).eval(), held_out)
    assert made["verdict"] == FLAG
    assert "the gradient is not zero" in flagged(made)
    # the scale changes no prediction, so the truth is that of the honest model: the cascade's DLR finds it, cross-entropy does not
    assert made["ladder"]["pgd-40"] > made["ladder"]["cascade"] + 0.2


def test_a_quantiser_in_front_is_flagged(digits_model: Normalized, held_out: Split) -> None:
    made = card(Wrapped(digits_model, before=quantised).eval(), held_out)
    assert made["verdict"] == FLAG
    assert {"the gradient is not zero", "attacks with gradients are the stronger ones"} <= flagged(made)
    assert made["gradient"]["zero_share"] == 1.0


def test_noise_at_test_time_is_flagged(digits_model: Normalized, held_out: Split) -> None:
    made = card(
        Wrapped(digits_model, before=noisy).eval(), held_out, CardSettings(images=24, restarts=2, cascade_steps=3, cascade_queries=5)
    )
    assert made["verdict"] == FLAG
    assert "the output is not random" in flagged(made)


def test_a_model_without_gradients_is_flagged_and_still_attacked(digits_model: Normalized, held_out: Split) -> None:
    made = card(lambda x: digits_model(x).detach(), held_out)
    assert made["verdict"] == FLAG
    assert {"a gradient exists"} <= flagged(made)
    assert list(made["ladder"]) == ["clean", "noise", "cascade"]
    assert made["ladder"]["cascade"] < made["ladder"]["noise"]


def test_a_model_left_in_train_mode_is_refused(digits_model: Normalized, held_out: Split) -> None:
    model = Wrapped(digits_model).train()
    try:
        with pytest.raises(ValueError, match="train mode"):
            card(model, held_out)
    finally:
        digits_model.eval()


def test_train_mode_hidden_in_a_function_is_flagged(digits_model: Normalized, held_out: Split) -> None:
    training = copy.deepcopy(digits_model).train()
    for module in training.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # the statistics of the batch are used, the running ones are left alone

    def hidden(x: Tensor) -> Tensor:
        logits: Tensor = training(x)
        return logits

    made = card(hidden, held_out, CardSettings(images=30, restarts=2, cascade_steps=3, cascade_queries=5))
    assert made["verdict"] == FLAG
    assert "images do not influence each other" in flagged(made)


def test_images_in_normalised_space_are_refused(digits_model: Normalized, held_out: Split) -> None:
    """An epsilon applied after normalisation would be another ball; pixels that are not uint8 never reach an attack."""
    normalised = (held_out.images.float() / 255 - 0.3) / 0.35
    with pytest.raises(ValueError, match="uint8"):
        card(digits_model, Split(normalised, held_out.labels, held_out.image_ids))


def test_probabilities_are_refused(digits_model: Normalized, held_out: Split) -> None:
    with pytest.raises(ValueError, match="Drop the softmax"):
        card(nn.Sequential(digits_model, nn.Softmax(dim=1)).eval(), held_out)


def test_the_sample_is_a_pure_function_of_seed_and_ids(held_out: Split) -> None:
    chosen = sample(held_out, 20, seed=0).image_ids.tolist()
    shuffled = held_out.take(torch.randperm(77, generator=torch.Generator().manual_seed(1)))
    assert sorted(sample(shuffled, 20, seed=0).image_ids.tolist()) == sorted(chosen)
    assert sample(held_out, 20, seed=1).image_ids.tolist() != chosen
    assert len(sample(held_out, 500, seed=0)) == 77


def test_every_restart_has_its_point_where_no_image_is_left_for_the_later_ones(digits_model: Normalized, held_out: Split) -> None:
    wide = replace(CLAIM, threat_model=ThreatModel("linf", 0.9), restarts=3)
    table = evaluate(
        digits_model.eval(), held_out.images[:4], held_out.labels[:4], held_out.image_ids[:4], attacks=[wide], seed=0, lanes=24
    )
    assert accuracy_by_restart(table, restarts=3) == [0.0, 0.0, 0.0]


def test_the_curves_are_those_of_direct_evaluations(honest: dict[str, Any], digits_model: Normalized, held_out: Split) -> None:
    """After k steps of one attack as many images stand as an attack of k + 1 points leaves: first_broken_step says it all."""
    chosen = sample(held_out, 48, seed=0)
    table = evaluate(digits_model, chosen.images, chosen.labels, chosen.image_ids, attacks=[CLAIM], lanes=24)
    curve = dict(tuple(point) for point in steps_curve(table, steps=40))
    assert curve == dict(tuple(point) for point in honest["curves"]["steps"])
    assert curve[40] == honest["ladder"]["pgd-40"] == honest["curves"]["restarts"][0][1]
    short = AttackSpec(threat_model=LINF, steps=20, step_size=8 / 255)
    standing = evaluate(digits_model, chosen.images, chosen.labels, chosen.image_ids, attacks=[short], lanes=24)["robust"]
    assert curve[20] == standing.to_pylist().count(True) / 48
    epsilons = honest["curves"]["epsilon"]
    assert epsilons[-1] == [1.0, 0.0]
    assert [round(e * 255) for e, _ in epsilons] == [10, 20, 40, 80, 160, 255]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stronger attacks break more", {"ladder": {"clean": 0.9, "noise": 0.95, "pgd-10": 0.5, "pgd-40": 0.4, "cascade": 0.4}}),
        ("stronger attacks break more", {"ladder": {"clean": 0.9, "noise": 0.9, "pgd-10": 0.3, "pgd-40": 0.4, "cascade": 0.4}}),
        ("stronger attacks break more", {"ladder": {"clean": 0.9, "noise": 0.9, "pgd-10": 0.5, "pgd-40": 0.4, "cascade": 0.5}}),
        ("the claim holds against the cascade", {"ladder": {"clean": 0.9, "noise": 0.9, "pgd-10": 0.5, "pgd-40": 0.45, "cascade": 0.1}}),
        ("more steps would not help", {"curves": {"steps": [[0, 0.9], [20, 0.6], [40, 0.4]]}}),
        ("more restarts would not help", {"curves": {"restarts": [[1, 0.6], [2, 0.5], [3, 0.4]]}}),
        ("larger balls break everything", {"curves": {"epsilon": [[0.1, 0.9], [0.5, 0.3], [1.0, 0.2]]}}),
        ("larger balls break everything", {"curves": {"epsilon": [[0.1, 0.5], [0.5, 0.6], [1.0, 0.0]]}}),
        ("the loss rises along the attack", {"curves": {"loss": [[0, 0.5], [40, 0.4]]}}),
        ("the loss rises along the attack", {"curves": {"share_of_falling_loss": 0.2}}),
        ("rounding to 8 bits does not undo the attack", {"curves": {"eight_bit": {"n": 48, "last_points": 0.2, "rounded": 0.4}}}),
        ("attacks with gradients are the stronger ones", {"broken_by_square_alone": 9}),
        ("the gradient is not zero", {"gradient": {"exists": True, "zero_share": 0.0, "images_of_zero_gradient": 1, "examples": [3]}}),
        ("the gradient is not zero", {"gradient": {"exists": True, "zero_share": 0.4, "images_of_zero_gradient": 0, "examples": []}}),
        ("the output is not random", {"repeatability": {"second_run": 0.1, "other_neighbours": 0.0, "largest_logit": 9.0}}),
        ("images do not influence each other", {"repeatability": {"second_run": 0.0, "other_neighbours": 0.1, "largest_logit": 9.0}}),
    ],
)
def test_every_check_can_fail_alone(name: str, change: dict[str, Any], honest: dict[str, Any]) -> None:
    evidence = {key: honest[key] | value if isinstance(value := change.get(key), dict) else change.get(key, honest[key]) for key in honest}
    assert {check.name for check in judge(evidence) if not check.passed} == {name}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"card\.restarts is 1; allowed: a whole number >= 2"):
        CardSettings(restarts=1)
