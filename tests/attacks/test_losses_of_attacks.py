"""What an attack ascends: the three losses against their formulas, and DLR's two invariances."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ray.attacks.loss_names import ATTACK_LOSSES, fewest_classes
from sat_ray.attacks.losses import attack_loss


def logits(seed: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw logits (40, classes), labels, and targets that differ from the labels."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(40, classes, generator=generator) * 3
    y = torch.randint(classes, (40,), generator=generator)
    return z, y, (y + torch.randint(1, classes, (40,), generator=generator)) % classes


def by_hand(z: list[float], y: int, t: int | None, loss: str) -> float:
    """Write the definition of one image out, with sorting instead of topk."""
    largest = sorted(z, reverse=True)
    others = [value for k, value in enumerate(z) if k != y]
    rise = (max(others) if t is None else z[t]) - z[y]
    if loss == "margin":
        return rise
    return rise / (largest[0] - (largest[2] if t is None else (largest[2] + largest[3]) / 2))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_margin_and_dlr_are_the_formulas_of_each_image(loss: str, targeted: bool) -> None:
    z, y, t = logits(0, 7)
    found = attack_loss(z, y, loss=loss, target=t if targeted else None)
    expected = [
        by_hand(z[i].tolist(), int(y[i]), int(t[i]) if targeted else None, loss)
        for i in range(len(z))
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_towards_a_target_the_cross_entropy_of_the_target_falls() -> None:
    z, y, t = logits(1, 5)
    torch.testing.assert_close(
        attack_loss(z, y, target=t), torch.log_softmax(z, dim=1).gather(1, t[:, None])[:, 0]
    )


@given(scale=st.floats(0.01, 1000), shift=st.floats(-50, 50), targeted=st.booleans())
def test_dlr_ignores_the_scale_and_the_shift_of_the_logits(
    scale: float, shift: float, targeted: bool
) -> None:
    z, y, t = logits(2, 6)
    target = t if targeted else None
    one, other = (
        attack_loss(values.double().float(), y, loss="dlr", target=target)
        for values in (z, z * scale + shift)
    )
    torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_every_loss_is_positive_exactly_where_it_should_be(loss: str) -> None:
    """DLR and margin change sign where the prediction changes; the cross-entropy is below log 2
    where the label has half the mass.
    """
    z, y, _ = logits(3, 6)
    value, wrong = attack_loss(z, y, loss=loss), z.argmax(dim=1) != y
    if loss == "cross_entropy":
        assert bool((value[value < torch.log(torch.tensor(2.0))] >= 0).all())
        assert not bool(wrong[value < torch.log(torch.tensor(2.0))].any())
    else:
        assert torch.equal(value > 0, wrong)


def test_dlr_needs_three_classes_and_four_towards_a_target() -> None:
    assert (
        fewest_classes("dlr", targeted=False),
        fewest_classes("dlr", targeted=True),
        fewest_classes("margin", targeted=True),
    ) == (
        3,
        4,
        2,
    )


def test_equal_logits_give_a_finite_dlr() -> None:
    z = torch.zeros(2, 5, requires_grad=True)
    value = attack_loss(z, torch.tensor([0, 1]), loss="dlr")
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
