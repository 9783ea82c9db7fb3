"""The robustness card: an honest model passes, every planted fraud is flagged or refused, and what
it measures is what it says.
"""

import copy
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sat_ray.evaluation.card.evidence
import sat_ray.evaluation.card.progress
from sat_ray.attacks import PGD, AttackSpec
from sat_ray.data.split import Split, given_split
from sat_ray.evaluation.card import FLAG, PASS, CardSettings, robustness_card, silent
from sat_ray.evaluation.card.checks import judge
from sat_ray.evaluation.card.evidence import accuracy_by_restart, steps_curve
from sat_ray.evaluation.card.settings import radii
from sat_ray.evaluation.card.subject import sample
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

LINF = ThreatModel("linf", 40 / 255)
CLAIM = AttackSpec(threat_model=LINF, steps=40, step_size=8 / 255)
SMALL = CardSettings(images=48, restarts=3, cascade_steps=15, cascade_queries=300)


class Wrapped(nn.Module):
    """A model with something in front of it or behind it."""

    def __init__(
        self,
        inner: nn.Module,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        scale: float = 1.0,
    ) -> None:
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


def card(
    model: Callable[[Tensor], Tensor],
    split: Split,
    settings: CardSettings = SMALL,
    **changes: Any,
) -> dict[str, Any]:
    """Make a small card, with as few steps in its curve over epsilon as cross a ball."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sat_ray.evaluation.card.evidence, "EPSILON_STEPS", 20)
        given = {"attack": CLAIM, "settings": settings, "slots": 24} | changes
        return robustness_card(model, split, **given)


def flagged(made: dict[str, Any]) -> set[str]:
    """Return the names of the failed checks."""
    return {check["name"] for check in made["checks"] if not check["passed"]}


@pytest.fixture(scope="module")
def honest(digits_model: Normalized, held_out: Split) -> dict[str, Any]:
    """Return the card of an honestly trained model, with all its steps."""
    return robustness_card(digits_model.eval(), held_out, attack=CLAIM, settings=SMALL, slots=24)


def test_an_honest_model_passes(honest: dict[str, Any]) -> None:
    assert honest["verdict"] == PASS, honest["reasons"]
    assert honest["n"] == 48 and len(honest["checks"]) == 14
    ladder = honest["ladder"]
    assert list(ladder) == ["clean", "noise", "pgd-10", "pgd-40", "cascade"]
    assert ladder["clean"] > 0.9 > 0.7 > ladder["pgd-40"] >= ladder["cascade"] > 0.1
    assert all(check["found"] and check["meaning"] for check in honest["checks"])


def test_saturated_logits_are_flagged(digits_model: Normalized, held_out: Split) -> None:
    made = card(Wrapped(digits_model, scale=1000.0).eval(), held_out)
    assert made["verdict"] == FLAG
    assert "the gradient is not zero" in flagged(made)
    # the scale changes no prediction, so the truth is that of the honest model: the cascade's DLR
    # finds it, cross-entropy does not
    assert made["ladder"]["pgd-40"] > made["ladder"]["cascade"] + 0.2


def test_a_quantiser_in_front_is_flagged(digits_model: Normalized, held_out: Split) -> None:
    made = card(Wrapped(digits_model, before=quantised).eval(), held_out)
    assert made["verdict"] == FLAG
    assert {"the gradient is not zero", "attacks with gradients are the stronger ones"} <= flagged(
        made
    )
    assert made["gradient"]["zero_share"] == 1.0


def test_noise_at_test_time_is_flagged(digits_model: Normalized, held_out: Split) -> None:
    made = card(
        Wrapped(digits_model, before=noisy).eval(),
        held_out,
        CardSettings(images=24, restarts=2, cascade_steps=3, cascade_queries=5),
    )
    assert made["verdict"] == FLAG
    assert "the output is not random" in flagged(made)


def test_a_model_without_gradients_is_flagged_and_still_attacked(
    digits_model: Normalized, held_out: Split
) -> None:
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


@pytest.mark.parametrize("images", [30, 48, 24], ids=["parts of a call", "whole calls", "one call"])
def test_train_mode_hidden_in_a_function_is_flagged(
    images: int, digits_model: Normalized, held_out: Split
) -> None:
    training = copy.deepcopy(digits_model).eval()
    layer = next(one for one in training.modules() if isinstance(one, nn.BatchNorm2d))
    layer.train()
    layer.momentum = 0.0  # the statistics of the batch are used, the running ones are left alone

    def hidden(x: Tensor) -> Tensor:
        logits: Tensor = training(x)
        return logits

    made = card(
        hidden,
        held_out,
        CardSettings(images=images, restarts=2, cascade_steps=3, cascade_queries=5),
    )
    assert made["verdict"] == FLAG
    assert "images do not influence each other" in flagged(made)


def stored(x: Tensor) -> Tensor:
    """Return the share of each image's pixels that 8 bits can hold: 1 for images,
    near 0 for random starts, (N, 1, 1, 1).
    """
    scaled = x.detach() * 255
    return ((scaled - scaled.round()).abs() < 1e-3).float().mean(dim=(1, 2, 3), keepdim=True)


TINY = CardSettings(images=24, restarts=2, cascade_steps=3, cascade_queries=5)


def test_noise_that_spares_images_as_they_are_stored_is_flagged(
    digits_model: Normalized, held_out: Split
) -> None:
    def noisy_elsewhere(x: Tensor) -> Tensor:
        return torch.where(stored(x) > 0.999, x, x + 0.03 * torch.randn_like(x))

    made = card(Wrapped(digits_model, before=noisy_elsewhere).eval(), held_out, TINY)
    assert "the output is not random" in flagged(made)


def test_a_gradient_that_vanishes_where_attacks_walk_is_flagged(
    digits_model: Normalized, held_out: Split
) -> None:
    """On the faces of the ball most pixels are whole again:
    neither images nor random starts look like that.
    """

    def cut_off_there(x: Tensor) -> Tensor:
        share = stored(x)
        return torch.where((share > 0.7) & (share < 0.999), x.detach(), x)

    made = card(Wrapped(digits_model, before=cut_off_there).eval(), held_out, TINY)
    assert "the gradient is not zero" in flagged(made)
    assert (
        made["gradient"]["images_of_zero_gradient"]
        == 0
        < made["curves"]["gradient_on_the_way"]["images_of_zero_gradient"]
    )


class Remembering(nn.Module):
    """Answer near the images of the first call as it answered to them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen, self.said = inner, torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        if not len(self.seen):
            self.seen, self.said = x.detach().clone(), logits.detach().clone()
        away = torch.cdist(x.detach().flatten(1), self.seen.flatten(1), p=float("inf"))
        nearest = away.min(dim=1)
        return torch.where(
            (nearest.values <= 41 / 255)[:, None],
            self.said[nearest.indices] + 0.01 * logits,
            logits,
        )


def test_a_model_that_remembers_images_is_flagged(
    digits_model: Normalized, held_out: Split
) -> None:
    made = card(Remembering(digits_model).eval(), held_out, TINY)
    assert "the model remembers nothing" in flagged(made)
    assert made["ladder"]["cascade"] > 0.9, "without that check it would look robust"


def test_a_model_that_cannot_be_copied_is_judged_by_the_other_checks(
    digits_model: Normalized, held_out: Split
) -> None:
    class Uncopied(Wrapped):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            raise RuntimeError("holds a file")

    made = card(Uncopied(digits_model).eval(), held_out, TINY)
    assert "fresh_copy" not in made["repeatability"]
    assert len(made["checks"]) == 13


def test_adversarial_images_that_rounding_heals_are_flagged(
    digits_model: Normalized, held_out: Split
) -> None:
    """A model that is wrong off the values of 8 bits alone:
    everything breaks it but what can be stored.
    """

    class WrongElsewhere(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.where(stored(x).flatten(1) > 0.999, logits, logits.roll(1, dims=1))

    made = card(WrongElsewhere(digits_model).eval(), held_out, TINY)
    assert "rounding to 8 bits does not undo the attack" in flagged(made)
    assert made["ladder"]["noise"] < 0.1 < 0.9 < made["ladder"]["clean"]


def test_what_the_probes_measure_is_what_a_plain_loop_finds(
    honest: dict[str, Any], digits_model: Normalized, held_out: Split
) -> None:
    chosen = sample(held_out, 48, seed=0)
    x, y, rng = chosen.images.float() / 255, chosen.labels, Randomness.of(0, chosen.image_ids)
    attack = PGD(threat_model=LINF, steps=40, step_size=8 / 255)
    state, losses = attack.start(x, y, rng), []
    for _ in range(41):
        last, state = state.x_adv, attack.step(digits_model, state)
        assert state.logits is not None
        losses.append(F.cross_entropy(state.logits, y, reduction="none"))
    with torch.no_grad():
        right = [
            float((digits_model(point).argmax(dim=1) == y).float().mean())
            for point in (last, (last * 255).round() / 255)
        ]
        noise = float(
            (digits_model(LINF.random_start(x, rng, step=1)).argmax(dim=1) == y).float().mean()
        )
    curves = honest["curves"]
    assert [curves["eight_bit"][name] for name in ("last_points", "rounded")] == pytest.approx(
        right
    )
    assert honest["ladder"]["noise"] == pytest.approx(noise)
    assert curves["share_of_falling_loss"] == float((losses[-1] < losses[0]).float().mean())
    assert curves["loss"][-1] == [40, pytest.approx(float(losses[-1].mean()), rel=1e-4)]


def test_the_share_of_zero_gradients_is_that_of_the_pixels_cut_off(
    digits_model: Normalized, held_out: Split
) -> None:
    def without_a_quarter(x: Tensor) -> Tensor:
        return torch.cat([x[..., :2].detach(), x[..., 2:]], dim=-1)  # two columns of eight

    made = card(Wrapped(digits_model, before=without_a_quarter).eval(), held_out, TINY)
    assert made["gradient"]["zero_share"] == pytest.approx(0.25, abs=0.01)
    assert made["curves"]["gradient_on_the_way"]["zero_share"] == pytest.approx(0.25, abs=0.01)


def test_what_survives_the_claim_and_falls_to_square_is_counted_though_other_attacks_break_it_too(
    digits_model: Normalized, held_out: Split
) -> None:
    """The claim is made by one step that points anywhere: APGD, with another loss on the way, and
    Square find what it misses.
    """

    def misleading(x: Tensor) -> Tensor:
        return x + (x.detach() - x) * 2  # the same pixels, and the gradient turned around

    model = Wrapped(digits_model, before=misleading).eval()
    made = card(
        model, held_out, CardSettings(images=48, restarts=2, cascade_steps=3, cascade_queries=200)
    )
    chosen = sample(held_out, 48, seed=0)
    claim = evaluate(
        model,
        chosen.images,
        chosen.labels,
        chosen.image_ids,
        attacks=[replace(CLAIM, restarts=2)],
        slots=24,
    )
    square = AttackSpec(threat_model=LINF, algorithm="square", steps=200)
    fallen = evaluate(
        model, chosen.images, chosen.labels, chosen.image_ids, attacks=[square], slots=24
    )
    expected = len(robust_image_ids(claim) - robust_image_ids(fallen))
    assert made["survivors_broken_by_square"] == expected > 10
    assert "attacks with gradients are the stronger ones" in flagged(made)


def test_a_targeted_claim_counts_all_its_targets(digits_model: Normalized, held_out: Split) -> None:
    claim = replace(CLAIM, loss="margin", targets=9, name="")
    made = card(digits_model.eval(), held_out, TINY, attack=claim)
    chosen = sample(held_out, 24, seed=0)
    table = evaluate(
        digits_model, chosen.images, chosen.labels, chosen.image_ids, attacks=[claim], slots=24
    )
    found = len(robust_image_ids(table)) / 24
    assert (
        made["ladder"][claim.name]
        == found
        == made["curves"]["restarts"][0][1]
        == made["curves"]["steps"][-1][1]
    )
    first = table.filter(pc.equal(table["restart"], 0))
    assert len(robust_image_ids(first)) / 24 > found, "one target alone leaves more"


def test_every_attack_is_made_through_every_backward_pass(
    digits_model: Normalized, held_out: Split
) -> None:
    def both(spec: AttackSpec) -> list[AttackSpec]:
        return (
            [spec]
            if spec.algorithm == "square"
            else [spec, replace(spec, attacker_activation="relu_smooth_backward", name="")]
        )

    weak = replace(CLAIM, steps=3, step_size=14 / 255, name="")
    made = card(digits_model.eval(), held_out, attack=weak, variants=both)
    chosen = sample(held_out, 48, seed=0)

    def standing(*attacks: AttackSpec) -> float:
        table = evaluate(
            digits_model, chosen.images, chosen.labels, chosen.image_ids, attacks=attacks, slots=24
        )
        return len(robust_image_ids(table)) / 48

    assert made["ladder"][weak.name] == standing(*both(weak)) < standing(weak)


@pytest.mark.parametrize("name", ["clean", "noise", "cascade"])
def test_a_claim_named_like_a_rung_of_the_ladder_is_refused(
    name: str, digits_model: Normalized, held_out: Split
) -> None:
    with pytest.raises(ValueError, match=rf"attack must have another name .*, got {name}"):
        robustness_card(
            digits_model.eval(), held_out, attack=replace(CLAIM, name=name), settings=TINY, slots=24
        )


def test_images_in_normalised_space_are_refused(digits_model: Normalized, held_out: Split) -> None:
    """An epsilon applied after normalisation would be another ball;
    pixels that are not uint8 never reach an attack.
    """
    normalised = (held_out.images.float() / 255 - 0.3) / 0.35
    with pytest.raises(ValueError, match="uint8"):
        card(digits_model, Split(normalised, held_out.labels, held_out.image_ids))


def test_probabilities_are_refused(digits_model: Normalized, held_out: Split) -> None:
    with pytest.raises(ValueError, match="drop the softmax"):
        card(nn.Sequential(digits_model, nn.Softmax(dim=1)).eval(), held_out)


def test_the_sample_is_a_pure_function_of_seed_and_ids(held_out: Split) -> None:
    chosen = sample(held_out, 20, seed=0).image_ids.tolist()
    shuffled = held_out.take(torch.randperm(77, generator=torch.Generator().manual_seed(1)))
    assert sorted(sample(shuffled, 20, seed=0).image_ids.tolist()) == sorted(chosen)
    assert sample(held_out, 20, seed=1).image_ids.tolist() != chosen
    assert len(sample(held_out, 500, seed=0)) == 77


def test_every_restart_has_its_point_where_no_image_is_left_for_the_later_ones(
    digits_model: Normalized, held_out: Split
) -> None:
    wide = replace(CLAIM, threat_model=ThreatModel("linf", 0.9), restarts=3)
    table = evaluate(
        digits_model.eval(),
        held_out.images[:4],
        held_out.labels[:4],
        held_out.image_ids[:4],
        attacks=[wide],
        seed=0,
        slots=24,
    )
    assert accuracy_by_restart(table, wide) == [0.0, 0.0, 0.0]


def test_the_curves_are_those_of_direct_evaluations(
    honest: dict[str, Any], digits_model: Normalized, held_out: Split
) -> None:
    """After k steps of one attack as many images stand as an attack of k + 1 points leaves:
    first_broken_step says it all.
    """
    chosen = sample(held_out, 48, seed=0)
    table = evaluate(
        digits_model, chosen.images, chosen.labels, chosen.image_ids, attacks=[CLAIM], slots=24
    )
    curve = dict(tuple(point) for point in steps_curve(table, CLAIM))
    assert curve == dict(tuple(point) for point in honest["curves"]["steps"])
    assert curve[40] == honest["ladder"]["pgd-40"] == honest["curves"]["restarts"][0][1]
    short = AttackSpec(threat_model=LINF, steps=20, step_size=8 / 255)
    standing = evaluate(
        digits_model, chosen.images, chosen.labels, chosen.image_ids, attacks=[short], slots=24
    )["robust"]
    assert curve[20] == standing.to_pylist().count(True) / 48
    epsilons = honest["curves"]["epsilon"]
    assert epsilons[-1] == [1.0, 0.0]
    assert [round(e * 255) for e, _ in epsilons] == [10, 20, 40, 80, 160, 255]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (
            "stronger attacks break more",
            {"ladder": {"clean": 0.9, "noise": 0.95, "pgd-10": 0.5, "pgd-40": 0.4, "cascade": 0.4}},
        ),
        (
            "stronger attacks break more",
            {"ladder": {"clean": 0.9, "noise": 0.9, "pgd-10": 0.3, "pgd-40": 0.4, "cascade": 0.4}},
        ),
        (
            "stronger attacks break more",
            {"ladder": {"clean": 0.9, "noise": 0.9, "pgd-10": 0.5, "pgd-40": 0.4, "cascade": 0.5}},
        ),
        (
            "the claim holds against the cascade",
            {"ladder": {"clean": 0.9, "noise": 0.9, "pgd-10": 0.5, "pgd-40": 0.45, "cascade": 0.3}},
        ),
        ("more steps would not help", {"curves": {"steps": [[0, 0.9], [20, 0.6], [40, 0.4]]}}),
        ("more restarts would not help", {"curves": {"restarts": [[1, 0.6], [2, 0.5], [3, 0.3]]}}),
        (  # each start takes little, the sum does not end
            "more restarts would not help",
            {"curves": {"restarts": [[1, 0.394], [2, 0.368], [3, 0.344], [4, 0.322], [5, 0.311]]}},
        ),
        ("the model is better than chance", {"chance": 0.95}),
        (
            "larger balls break everything",
            {"curves": {"epsilon": [[0.1, 0.9], [0.5, 0.3], [1.0, 0.2]]}},
        ),
        (
            "larger balls break everything",
            {"curves": {"epsilon": [[0.1, 0.5], [0.5, 0.6], [1.0, 0.0]]}},
        ),
        ("the loss rises along the attack", {"curves": {"loss": [[0, 0.5], [40, 0.4]]}}),
        ("the loss rises along the attack", {"curves": {"share_of_falling_loss": 0.2}}),
        (
            "rounding to 8 bits does not undo the attack",
            {"curves": {"eight_bit": {"n": 48, "last_points": 0.2, "rounded": 0.4}}},
        ),
        (  # few points, but half of the images that the attack had broken
            "rounding to 8 bits does not undo the attack",
            {"curves": {"eight_bit": {"n": 128, "last_points": 0.906, "rounded": 0.953}}},
        ),
        ("attacks with gradients are the stronger ones", {"broken_by_square_alone": 3}),
        ("attacks with gradients are the stronger ones", {"survivors_broken_by_square": 5}),
        (
            "the gradient is not zero",
            {
                "curves": {
                    "gradient_on_the_way": {
                        "zero_share": 0.0,
                        "images_of_zero_gradient": 1,
                        "examples": [3],
                    }
                }
            },
        ),
        (
            "the gradient is not zero",
            {
                "curves": {
                    "gradient_on_the_way": {
                        "zero_share": 0.4,
                        "images_of_zero_gradient": 0,
                        "examples": [],
                    }
                }
            },
        ),
        ("the model remembers nothing", {"repeatability": {"fresh_copy": 0.1}}),
        (
            "the gradient is not zero",
            {
                "gradient": {
                    "exists": True,
                    "zero_share": 0.0,
                    "images_of_zero_gradient": 1,
                    "examples": [3],
                }
            },
        ),
        (
            "the gradient is not zero",
            {
                "gradient": {
                    "exists": True,
                    "zero_share": 0.4,
                    "images_of_zero_gradient": 0,
                    "examples": [],
                }
            },
        ),
        (
            "the output is not random",
            {"repeatability": {"second_run": 0.1, "other_neighbours": 0.0, "largest_logit": 9.0}},
        ),
        (
            "images do not influence each other",
            {"repeatability": {"second_run": 0.0, "other_neighbours": 0.1, "largest_logit": 9.0}},
        ),
    ],
)
def test_every_check_can_fail_alone(
    name: str, change: dict[str, Any], honest: dict[str, Any]
) -> None:
    evidence = {
        key: honest[key] | value
        if isinstance(value := change.get(key), dict)
        else change.get(key, honest[key])
        for key in honest
    }
    assert {check.name for check in judge(evidence) if not check.passed} == {name}


def planted(honest: dict[str, Any], **change: Any) -> dict[str, Any]:
    """Return the evidence of the honest model with other values; "curves" are joined."""
    return honest | change | {"curves": honest["curves"] | change.get("curves", {})}


LIMITED = (  # what is printed of the figure that counts, and of its limit
    r"([\d.]+) points less, .*\(allowed: ([\d.]+) points\)$",
    r"^([\d.]+) % at epsilon .*\(allowed: ([\d.]+) %\)",
    r"it ends lower for ([\d.]+) % of the images \(allowed: ([\d.]+) %\)",
    r"by ([\d.]+) points \(allowed: ([\d.]+) points out of order\)",
    r": ([\d.]+) points more \(allowed: ([\d.]+) more\)",
    r"points on the way: .* ([\d.]+) % of all entries exactly 0 \(.*, ([\d.]+) %\)",
)


@given(
    n=st.integers(3, 2000),
    share=st.floats(0, 1),
    lost=st.integers(-3, 3),
    limit=st.sampled_from([0.02, 0.05, 0.1, 0.25]),
)
def test_a_figure_is_printed_above_its_limit_exactly_where_the_check_fails(
    n: int, share: float, lost: int, limit: float, honest: dict[str, Any]
) -> None:
    left = round(share * n) / n
    # near every limit: as a share of what was left, of all, and of what is wrong
    nears = [limit * left, limit, limit * (1 - left), 0.01]
    for near in nears:
        other = min(1.0, max(0.0, left - (round(near * n) + lost) / n))
        moved = min(1.0, (round(near * n) + abs(lost)) / n)
        checks = judge(
            planted(
                honest,
                n=n,
                ladder={"clean": left, "noise": left, "pgd-40": left, "cascade": other},
                curves={
                    "steps": [[0, 1.0], [20, left], [40, other]],
                    "restarts": [[1, left], [3, min(left, other)]],
                    "epsilon": [[0.5, 1.0], [1.0, moved]],
                    "share_of_falling_loss": moved,
                    "eight_bit": {"n": n, "last_points": other, "rounded": left},
                    "gradient_on_the_way": {
                        "zero_share": moved,
                        "images_of_zero_gradient": 0,
                        "examples": [],
                    },
                },
            )
        )
        for check in checks:
            for pattern in LIMITED:
                if shown := re.search(pattern, check.found):
                    above = float(shown[1]) > float(shown[2])
                    assert above != check.passed, check


def test_an_attack_that_leaves_a_little_more_is_not_said_to_leave_less(
    honest: dict[str, Any],
) -> None:
    ladder = {"clean": 0.9, "noise": 0.9, "pgd-10": 0.6, "pgd-40": 0.5, "cascade": 0.505}
    found = {check.name: check for check in judge(planted(honest, n=1000, ladder=ladder))}
    ordered = found["stronger attacks break more"]
    assert ordered.passed and "≥" not in ordered.found
    claim = found["the claim holds against the cascade"]
    assert claim.passed and claim.found.endswith("the cascade 50.5 %: 0.5 points more")


def test_no_more_images_survive_every_attack_than_survive_the_claimed_one(
    digits_model: Normalized, held_out: Split
) -> None:
    """APGD of one step breaks less than the claim, so its survivors are more."""
    settings = CardSettings(images=48, restarts=2, cascade_steps=1, cascade_queries=1)
    made = card(digits_model.eval(), held_out, settings)
    assert made["ladder"]["cascade"] > made["ladder"]["pgd-40"]
    assert made["survivors_of_gradients"] <= made["survivors_of_claim"]
    assert made["survivors_of_claim"] == round(48 * made["curves"]["restarts"][-1][1])


def test_without_a_gradient_no_claim_is_said_to_have_been_attacked(
    digits_model: Normalized, held_out: Split
) -> None:
    made = card(lambda x: digits_model(x).detach(), held_out, TINY)
    square = made["checks"][-1]["found"]
    right = round(24 * made["ladder"]["clean"])
    assert square.startswith("no attack with gradients was run; ")
    assert f"of the {right} images that are right fall to Square" in square


@pytest.mark.parametrize(
    ("threat_model", "largest"),
    [
        (ThreatModel("linf", 1 / 255), 1.0),
        (ThreatModel("linf", 8 / 255), 1.0),
        (ThreatModel("linf", 1.0), 1.0),
        (ThreatModel("l2", 0.1), 8.0),
        (ThreatModel("l2", 5.0), 8.0),
    ],
    ids=str,
)
def test_the_curve_ends_with_a_ball_that_holds_every_image(
    threat_model: ThreatModel, largest: float
) -> None:
    found = radii(threat_model, values=64)
    assert found[-1] == largest and found == sorted(set(found))


@pytest.mark.parametrize(
    "threat_model", [ThreatModel("linf", 2 / 255), ThreatModel("l2", 0.02)], ids=str
)
def test_an_honest_model_passes_at_a_small_epsilon(
    threat_model: ThreatModel, digits_model: Normalized, held_out: Split
) -> None:
    """16 times such an epsilon replaces no image, so most of them may survive there."""
    claim = replace(CLAIM, threat_model=threat_model, step_size=threat_model.epsilon / 4, name="")
    made = robustness_card(
        digits_model.eval(), held_out, attack=claim, settings=TINY, slots=24, on_progress=silent
    )
    assert made["verdict"] == PASS, made["reasons"]
    assert made["curves"]["epsilon"][-2][1] > 0.02 >= made["curves"]["epsilon"][-1][1]


def test_arrays_and_a_split_give_the_same_card(digits_model: Normalized, held_out: Split) -> None:
    some = held_out.take(slice(0, 24))
    split = Split(some.images, some.labels, torch.arange(24))
    given = {
        "split": split,
        "tensors": (some.images, some.labels),
        "arrays": (some.images.numpy(), some.labels.numpy()),
        "a list of labels": (some.images.numpy(), some.labels.tolist()),
    }
    for one in given.values():
        read = given_split(one, field="split")
        assert torch.equal(read.images, split.images) and torch.equal(read.labels, split.labels)
        assert torch.equal(read.image_ids, split.image_ids)
    one, other = (card(digits_model.eval(), given[name], TINY) for name in ("split", "arrays"))
    assert one == other and one["n"] == 24


IMAGES = np.zeros((4, 1, 8, 8), dtype=np.uint8)
LABELS = np.zeros(4, dtype=np.int64)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (IMAGES, r"split must be a Split or a tuple \(images, labels\), got ndarray"),
        ((IMAGES, LABELS, LABELS), "got tuple of 3"),
        ("digits", "got str"),
        (None, "got NoneType"),
        (
            (IMAGES / 255, LABELS),
            r"split.images must be uint8 of shape \(N, C, H, W\), got torch.float64 .*multiply",
        ),
        ((IMAGES[:, 0], LABELS), r"split.images must be uint8 .* of shape \(4, 8, 8\)"),
        ((np.array(["a"]), LABELS), "split.images must be an array of numbers, got ndarray"),
        (
            (IMAGES, LABELS[:3]),
            r"split.labels must be 4 whole numbers, one per image, got torch.int64 of shape \(3,\)",
        ),
        ((IMAGES, LABELS / 2), "split.labels must be 4 whole numbers"),
        ((IMAGES, ["cat"] * 4), "split.labels must be an array of numbers, got list"),
        ((IMAGES, np.eye(10)[LABELS]), r"split.labels must be 4 whole numbers, .*\(4, 10\)"),
        ((IMAGES[:0], LABELS[:0]), "split must have at least one image"),
        ((IMAGES, LABELS + 10), "labels must lie in"),
        (
            Split(torch.from_numpy(IMAGES), torch.zeros(4), torch.arange(3)),
            "split.labels must be 4 whole numbers",
        ),
        (
            Split(torch.from_numpy(IMAGES), torch.zeros(4).long(), torch.ones(4).long()),
            "split.image_ids must differ",
        ),
    ],
)
def test_images_of_a_wrong_kind_are_refused_in_one_line(
    given: Any, words: str, digits_model: Normalized
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        robustness_card(digits_model.eval(), given, attack=CLAIM, settings=TINY)
    assert "\n" not in str(caught.value)


def test_every_part_is_reported_when_it_begins(
    digits_model: Normalized, held_out: Split, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, float]] = []
    robustness_card(
        digits_model.eval(),
        held_out,
        attack=CLAIM,
        settings=TINY,
        on_progress=lambda part, seconds: seen.append((part, seconds)),
    )
    parts = [part for part, _ in seen]
    seconds = [second for _, second in seen]
    assert len(set(parts)) == len(parts) >= 10
    for start in (
        "pgd-40, 2 restarts",
        "pgd-50 at epsilon 1",
        "apgd-ce-3 on ",
        "apgd-t-dlr-3 on ",
        "square-5 on ",
    ):
        assert [part.startswith(start) for part in parts].count(True) == 1, start
    assert seconds == sorted(seconds) and seconds[0] >= 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("patience", "speaks"), [(0.01, True), (600.0, False)])
def test_lines_on_stderr_begin_once_the_work_takes_long(
    patience: float,
    speaks: bool,
    digits_model: Normalized,
    held_out: Split,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sat_ray.evaluation.card.progress, "PATIENCE", patience)
    robustness_card(digits_model.eval(), held_out, attack=CLAIM, settings=TINY)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and bool(lines) == speaks
    if speaks:
        assert all(line.startswith("robustness card: ") for line in lines)
        assert re.search(r"square-5 on \d+ images \(\d+ s so far\)", err)
        assert re.fullmatch(r"robustness card: ended after \d+ s", lines[-1])
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(600)  # cancelled: it ends at once
        assert not timer.is_alive()


@pytest.mark.parametrize(
    ("images", "values", "rows"),
    [
        (1, 64, 32),
        (60, 64, 64),
        (1000, 64, 256),
        (1000, 3072, 256),
        (1000, 3 * 64 * 64, 64),
        (1000, 3 * 224 * 224, 32),
    ],
)
def test_a_call_holds_all_images_where_they_fit(images: int, values: int, rows: int) -> None:
    assert sat_ray.evaluation.card._rows(images, values) == rows


def test_few_small_images_take_few_calls_on_one_thread(
    digits_model: Normalized, held_out: Split
) -> None:
    """Each point of an attack is one call for all images, and Square searches once."""

    class Counting(Wrapped):
        calls = 0
        threads: ClassVar[set[int]] = set()

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.threads.add(torch.get_num_threads())
            return super().forward(x)

    model = Counting(digits_model).eval()
    before = torch.get_num_threads()
    settings = CardSettings(images=60, restarts=2, cascade_steps=10, cascade_queries=400)
    torch.set_num_threads(2)
    try:
        robustness_card(model, held_out, attack=CLAIM, settings=settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert model.threads == {1}
    # two restarts of 41 points, those of the course, PGD-10, six radii of 51, 10 runs of 11,
    # Square's 401; the rest are probes
    assert 401 < model.calls < 2 * 41 + 41 + 11 + 6 * 51 + 10 * 11 + 401 + 100


def test_bad_settings_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"card\.restarts must be a whole number from 2 to 1000000, got 1"
    ):
        CardSettings(restarts=1)
