"""The core on a CUDA GPU, against the CPU, itself and the debug mode of torch that forbids waiting.
Skipped where there is no GPU.

It needs no Ray and no MLflow: python -m pytest tests/evaluation/test_on_gpu.py
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn
from trainings import BALL, small_model, step_of, train

from sat_ray.activations.registry import ACTIVATIONS, make_activation
from sat_ray.attacks import AttackSpec, cascade, pgd
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import SORT_ORDER, clean_correct_ids, robust_image_ids
from sat_ray.evaluation.robustness import calibrate_attacks, evaluate
from sat_ray.models import Normalized, build_model, folded, settle_layout
from sat_ray.models.parity import logits_and_gradient
from sat_ray.threat import ThreatModel
from sat_ray.training.resume.checkpointing import pack_state, unpack_state
from sat_ray.utils.precision import exact_float32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
SLOTS = 64
PGD_50 = AttackSpec(threat_model=BALL, steps=50, step_size=8 / 255)


@pytest.fixture(scope="module")
def on_gpu(digits_model: Normalized) -> Normalized:
    """Return the model of the tests on the GPU, laid out as an evaluation would."""
    model = copy.deepcopy(digits_model).to(GPU)
    settle_layout(model)
    return model


def table_of(model: nn.Module, split: Split, **changes: Any) -> pa.Table:
    """Evaluate a split."""
    settings: dict[str, Any] = {"attacks": [PGD_50], "slots": SLOTS, **changes}
    return evaluate(model, split.images, split.labels, split.image_ids, **settings)


def agreement(one: pa.Table, other: pa.Table) -> float:
    """Return the share of images with the same verdict."""
    ids = set(one["image_id"].to_pylist())
    assert ids == set(other["image_id"].to_pylist())
    return 1 - len(robust_image_ids(one) ^ robust_image_ids(other)) / len(ids)


def test_verdicts_are_those_of_the_cpu(
    digits_model: Normalized, on_gpu: Normalized, digits: Split
) -> None:
    part = digits.take(slice(900, 1300))
    cpu, gpu = table_of(digits_model, part), table_of(on_gpu, part)
    assert clean_correct_ids(cpu) == clean_correct_ids(gpu)
    assert 40 < len(robust_image_ids(cpu)) < 360
    assert agreement(cpu, gpu) >= 0.99


def test_outcomes_have_the_same_bytes_in_any_shards_and_order(
    on_gpu: Normalized, held_out: Split
) -> None:
    whole = table_of(on_gpu, held_out)
    parts = [held_out.take(torch.arange(len(held_out))[first::3].flip(0)) for first in range(3)]
    merged = pa.concat_tables([table_of(on_gpu, part) for part in parts]).sort_by(SORT_ORDER)
    assert merged.equals(whole)
    assert table_of(on_gpu, held_out).equals(whole)


@pytest.mark.parametrize("gradient", ["bf16", "fp16"])
def test_gradients_of_a_surrogate_give_the_verdicts_of_float32(
    gradient: str, on_gpu: Normalized, digits: Split
) -> None:
    part = digits.take(slice(900, 1156))
    spec = replace(PGD_50, gradient=gradient, name="")
    calibrations = calibrate_attacks(on_gpu, part.take(slice(0, 64)), attacks=[spec], slots=SLOTS)
    found = table_of(on_gpu, part, attacks=[spec], calibrations=calibrations)
    assert agreement(found, table_of(on_gpu, part)) >= 0.96
    parts = [
        table_of(on_gpu, part.take(slice(k, None, 2)), attacks=[spec], calibrations=calibrations)
        for k in (0, 1)
    ]
    assert robust_image_ids(pa.concat_tables(parts)) == robust_image_ids(found)


def test_the_cascade_is_at_least_as_strong_as_pgd_and_no_image_counts_twice(
    on_gpu: Normalized, held_out: Split
) -> None:
    pgd_alone = table_of(on_gpu, held_out)
    stronger = table_of(
        on_gpu, held_out, attacks=cascade(BALL, num_classes=10, steps=20, queries=100), cascade=True
    )
    assert (
        len(robust_image_ids(stronger))
        <= len(robust_image_ids(pgd_alone))
        < len(clean_correct_ids(pgd_alone))
    )
    assert set(stronger["image_id"].to_pylist()) == set(held_out.image_ids.tolist())


@pytest.mark.parametrize("threat_model", [BALL, ThreatModel("l2", 0.8)], ids=str)
def test_every_returned_point_is_feasible(
    threat_model: ThreatModel, on_gpu: Normalized, held_out: Split
) -> None:
    x, y = (held_out.images.float() / 255).to(GPU), held_out.labels.to(GPU)
    x_adv = pgd(
        on_gpu,
        x,
        y,
        threat_model=threat_model,
        step_size=threat_model.epsilon / 4,
        steps=10,
        restarts=2,
    )
    assert bool(threat_model.contains(x_adv, x).all()) and x_adv.device.type == "cuda"
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_computes_on_the_gpu_what_it_computes_in_float64(name: str) -> None:
    x = torch.linspace(-8, 8, 4097)
    module = make_activation(name)
    exact, found = (point.requires_grad_() for point in (x.double(), x.to(GPU)))
    (slope,) = torch.autograd.grad(module.double()(exact).sum(), exact)
    (found_slope,) = torch.autograd.grad(module.float().to(GPU)(found).sum(), found)
    torch.testing.assert_close(
        module(found.detach()).cpu().double(),
        module.cpu().double()(x.double()),
        rtol=1e-5,
        atol=2e-6,
    )
    off_zero = x != 0
    torch.testing.assert_close(
        found_slope.cpu().double()[off_zero], slope[off_zero], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "preact_resnet18"])
def test_a_network_has_the_logits_and_gradients_of_the_cpu(name: str) -> None:
    model = build_model(name, activation="silu", num_classes=10, seed=0).eval()
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with exact_float32():
        expected, found = (
            logits_and_gradient(model, x),
            logits_and_gradient(copy.deepcopy(model).to(GPU), x.to(GPU)),
        )
    for one, other in zip(found.values(), expected.values(), strict=True):
        assert float((one.cpu() - other).norm() / other.norm()) < 1e-4


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "preact_resnet18"])
def test_a_folded_network_has_the_logits_and_gradients_of_the_network(name: str) -> None:
    """With the products and blocks that replace convolutions on a GPU alone."""
    model = build_model(name, activation="silu", num_classes=10, stem="imagenet", seed=0).to(GPU)
    x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(GPU)
    model.train()(x)  # moves the running statistics away from 0 and 1
    settle_layout(model.eval())
    with exact_float32():
        expected, found = logits_and_gradient(model, x), logits_and_gradient(folded(model), x)
    for one, other in zip(found.values(), expected.values(), strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-4


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_training_ends_near_that_of_the_cpu(precision: str, digits: Split) -> None:
    """Two epochs of eight updates; at this length the
    two kinds of arithmetic have not yet parted.
    """
    (_, cpu), (_, gpu) = (
        train(small_model().to(device), digits, precision=precision) for device in ("cpu", "cuda")
    )
    allowed = 0.02 if precision == "float32" else 0.2
    assert gpu.metrics["train/loss"] == pytest.approx(cpu.metrics["train/loss"], rel=allowed)
    first, second = (
        torch.cat([t.flatten() for name, t in one.state.weights.items() if name.endswith("weight")])
        for one in (cpu, gpu)
    )
    assert float((first - second).norm() / first.norm()) < allowed


def test_a_state_of_the_gpu_goes_on_on_the_cpu(digits: Split) -> None:
    (report,) = train(small_model().to(GPU), digits, until=1)
    state = unpack_state(pack_state(report.state))
    (rest,) = train(small_model(), digits, state=state)
    assert rest.epoch == 1 and torch.tensor(rest.metrics["train/loss"]).isfinite()


STEPS = [
    pytest.param({}, id="as it is"),
    pytest.param({"precision": "bf16"}, id="bf16"),
    pytest.param(
        {"attack_steps": 3, "ema_decay": 0.9, "gradient_clip": 1.0}, id="PGD-3, average, clipping"
    ),
    pytest.param({"objective": "trades", "attack_steps": 2}, id="TRADES"),
    pytest.param(
        {"augmentation": "resized_crop_flip", "label_smoothing": 0.1}, id="ImageNet's crops"
    ),
]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Undo the debug mode of torch under which waiting for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    "activation", ["silu", "gelu_learned", "smoothrelu_learned", "relu_smooth_backward"]
)
@pytest.mark.parametrize("changes", STEPS)
def test_no_step_waits_for_the_gpu(changes: dict[str, Any], activation: str, digits: Split) -> None:
    step = step_of(
        digits.take(slice(0, 32)).to(GPU), activation=activation, device="cuda", **changes
    )
    step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    step(1)
