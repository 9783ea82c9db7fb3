"""Losses image by image, the spelling of attacks, names that suggest,
and the one division by 255.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from sat_ray.attacks import AttackSpec
from sat_ray.attacks.losses import attack_loss, cross_entropy, margin
from sat_ray.attacks.spec import true_and_smooth
from sat_ray.threat import ThreatModel
from sat_ray.utils.names import check_name

LINF = ThreatModel("linf", 0.1)
logit_rows = hnp.arrays("float32", (3, 4), elements=st.floats(-30, 30, width=32)).map(
    torch.from_numpy
)
label_rows = st.lists(st.integers(0, 3), min_size=3, max_size=3).map(torch.tensor)


@given(logit_rows, label_rows)
def test_cross_entropy_is_the_formula_of_each_image(z: Tensor, y: Tensor) -> None:
    for row, label, loss in zip(z.tolist(), y.tolist(), cross_entropy(z, y).tolist(), strict=True):
        top = max(row)
        assert loss == pytest.approx(
            top + math.log(sum(math.exp(v - top) for v in row)) - row[label], rel=1e-5, abs=1e-5
        )


@given(logit_rows, label_rows)
def test_the_margin_is_the_labels_logit_minus_the_best_other(z: Tensor, y: Tensor) -> None:
    for row, label, value in zip(z.tolist(), y.tolist(), margin(z, y).tolist(), strict=True):
        assert value == pytest.approx(
            row[label] - max(v for k, v in enumerate(row) if k != label), rel=1e-6, abs=1e-6
        )
        if abs(value) > 1e-6:
            assert (value > 0) == (max(range(4), key=row.__getitem__) == label)


def test_the_margin_of_a_single_class_is_infinite() -> None:
    assert margin(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)).tolist() == [
        math.inf,
        math.inf,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    z, y = torch.tensor([[300.0, -300.0], [1.0, 2.0]], dtype=dtype), torch.tensor([1, 0])
    for loss in (cross_entropy, margin):
        assert loss(z, y).dtype == torch.float32
        torch.testing.assert_close(loss(z, y), loss(z.float(), y))


def test_the_attacks_loss_is_of_each_image_so_that_none_depends_on_the_batch() -> None:
    z, y = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1]),
    )
    torch.testing.assert_close(attack_loss(z, y), cross_entropy(z, y))
    torch.testing.assert_close(
        attack_loss(torch.cat([z, z.flip(0)]), torch.cat([y, y.flip(0)]))[:5], attack_loss(z, y)
    )


def test_an_unknown_name_is_answered_with_near_misses_or_the_whole_list() -> None:
    known = ("silu", "gelu", "relu")
    assert check_name("silu", known, field="activation") == "silu"
    with pytest.raises(ValueError, match="activation 'SILU' is unknown; did you mean silu"):
        check_name("SILU", known, field="activation")
    with pytest.raises(ValueError, match="choose gelu, relu, silu"):
        check_name("zzz", known, field="activation")


def test_a_ball_that_is_reached_exactly_is_accepted() -> None:
    for k, steps in ((8, 10), (4, 3), (7, 49)):
        AttackSpec(
            threat_model=ThreatModel("linf", k / 255), steps=steps, step_size=k / 255 / steps
        )


def test_a_spec_survives_json_and_names_itself() -> None:
    spec = AttackSpec(
        threat_model=LINF,
        steps=200,
        step_size=1 / 255,
        restarts=2,
        attacker_activation="relu_smooth_backward",
        final_iterate=True,
    )
    assert AttackSpec.from_json(spec.to_json()) == spec
    assert spec.name == "pgd-200@relu_smooth_backward-final"
    with pytest.raises(ValueError, match="attacker_activation 'rellu' is unknown"):
        AttackSpec(threat_model=LINF, steps=1, step_size=1.0, attacker_activation="rellu")


@pytest.mark.parametrize(
    ("activation", "attacker", "used"),
    [("relu", None, [None]), ("silu", None, [None]),
     ("relu", "relu_smooth_backward", [None, "relu_smooth_backward"]),
     ("relu_smooth_backward", None, ["relu", "relu_smooth_backward"]),
     ("relu_smooth_backward", "relu", ["relu", "relu_smooth_backward"])],
)  # fmt: skip
def test_a_smooth_backward_in_training_is_attacked_with_both_gradients(
    activation: str, attacker: str | None, used: list[str | None]
) -> None:
    spec = AttackSpec(threat_model=LINF, steps=10, step_size=0.1)
    specs = true_and_smooth(spec, activation=activation, attacker_activation=attacker)
    assert [s.attacker_activation for s in specs] == used
    assert len({s.name for s in specs}) == len(used)


def test_a_final_iterate_attack_through_the_smooth_backward_is_still_known_as_one() -> None:
    spec = AttackSpec(threat_model=LINF, steps=10, step_size=0.1, final_iterate=True)
    names = [
        s.name
        for s in true_and_smooth(
            spec, activation="relu", attacker_activation="relu_smooth_backward"
        )
    ]
    assert names == ["pgd-10-final", "pgd-10@relu_smooth_backward-final"]


def test_square_takes_no_gradient_so_one_backward_is_enough() -> None:
    spec = AttackSpec(threat_model=LINF, algorithm="square", steps=10)
    assert true_and_smooth(spec, activation="relu", attacker_activation="relu_smooth_backward") == [
        spec
    ]
