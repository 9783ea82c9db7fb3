"""Verdicts are given in true float32, whatever torch was told to make faster,
and what it was told is kept.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec
from sat_ray.data.split import Split
from sat_ray.evaluation.card import robustness_card
from sat_ray.evaluation.card.settings import CardSettings
from sat_ray.evaluation.robustness import calibrate_attacks, evaluate
from sat_ray.models import Normalized
from sat_ray.threat import ThreatModel
from sat_ray.utils.precision import exact_float32

CUDNN = torch.backends.cudnn
SPEC = AttackSpec(threat_model=ThreatModel("linf", 8 / 255), steps=2, step_size=8 / 255)


def settings() -> tuple[object, ...]:
    """Return what torch is told now about exactness."""
    return (
        CUDNN.enabled,
        CUDNN.allow_tf32,
        CUDNN.deterministic,
        CUDNN.benchmark,
        torch.get_float32_matmul_precision(),
    )


EXACT = (CUDNN.enabled, False, True, False, "highest")


@pytest.fixture
def hurried() -> Iterator[tuple[object, ...]]:
    """Tell torch to be fast rather than exact, and yield that."""
    with CUDNN.flags(enabled=CUDNN.enabled, benchmark=True, deterministic=False, allow_tf32=True):
        torch.set_float32_matmul_precision("high")
        yield settings()
        torch.set_float32_matmul_precision("highest")


def test_what_was_told_is_put_back_even_after_an_error(hurried: tuple[object, ...]) -> None:
    with exact_float32():
        assert settings() == EXACT
    with pytest.raises(ZeroDivisionError), exact_float32():
        raise ZeroDivisionError
    assert settings() == hurried


def test_every_call_of_a_model_in_an_evaluation_a_calibration_and_a_card_is_exact(
    hurried: tuple[object, ...], digits_model: Normalized, held_out: Split
) -> None:
    seen = set()

    def watch(*_: object) -> None:
        seen.add(settings())

    few = held_out.take(slice(0, 16))
    handle = digits_model.register_forward_pre_hook(watch)
    try:
        evaluate(digits_model, few.images, few.labels, few.image_ids, attacks=[SPEC], slots=8)
        assert seen == {EXACT}
        low = AttackSpec(
            threat_model=SPEC.threat_model, steps=2, step_size=8 / 255, gradient="bf16"
        )
        calibrate_attacks(digits_model, few, attacks=[low], slots=8)
        card = CardSettings(images=8, restarts=2, cascade_steps=2, cascade_queries=5)
        robustness_card(digits_model, few, attack=SPEC, settings=card, slots=8)
    finally:
        handle.remove()
    assert seen == {EXACT}
    assert settings() == hurried


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_convolutions_on_a_gpu_are_those_of_the_cpu_up_to_rounding() -> None:
    """TF32 errs by some 1e-3, float32 by less than 1e-5."""

    def convolved(device: str) -> Tensor:
        x, weight = (
            torch.randn(shape, generator=torch.Generator().manual_seed(0))
            for shape in ((2, 64, 16, 16), (64, 64, 3, 3))
        )
        return torch.nn.functional.conv2d(x.to(device), weight.to(device) / 24).cpu()

    with exact_float32():
        assert (convolved("cuda") - convolved("cpu")).abs().max() < 2e-5
