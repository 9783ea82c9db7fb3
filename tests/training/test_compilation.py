"""Compiled training: the same numbers up to rounding, the same weights by name, whatever the
activation; and what it refuses.

Traced and differentiated as any compiled model is, run by torch's own kernels (backend aot_eager):
seconds. Real kernels: marker fault.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import (
    assert_same_bits,
    digits_again,
    enlarged,
    in_two_processes,
    small_model,
    train,
    worker_of_two,
)

import sat_ray.training.adversary
from sat_ray.activations.module import Activation
from sat_ray.activations.registry import ACTIVATIONS, make_activation
from sat_ray.data.split import Split
from sat_ray.integrations.command_line.checks.preflight import check_machine
from sat_ray.models.parity import gradients_by_name, require_agreement
from sat_ray.sweep.records.store import numerical_environment
from sat_ray.training.loop import EpochReport, TrainingSettings
from sat_ray.utils import compile as compilation

SHORT: dict[str, Any] = {"images": 64, "epochs": 2}  # two updates an epoch, of two groups each


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the kernels to torch."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


def assert_close(ours: EpochReport, theirs: EpochReport, *, within: float) -> None:
    """Assert that two trainings left the same weights, statistics and momentum by name,
    up to rounding.
    """
    for part in ("weights", "optimizer", "best"):
        one, other = getattr(ours.state, part), getattr(theirs.state, part)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(
                tensor, other[name], rtol=0, atol=within, msg=f"{part} {name}"
            )


class EveryActivation(nn.Module):
    """All of the registry side by side. x: (N,) -> (activations, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ModuleList(make_activation(name) for name in ACTIVATIONS)

    def forward(self, x: Tensor) -> Tensor:
        """Return a row from each."""
        return torch.stack([one(row) for one, row in zip(self.all, x, strict=True)])


def test_every_activation_is_traced_without_a_break_and_keeps_its_own_gradient(
    traced: None,
) -> None:
    module, found = EveryActivation(), []
    x = torch.linspace(-3, 3, 61).repeat(len(ACTIVATIONS), 1)
    assert torch._dynamo.explain(module)(x.clone().requires_grad_()).graph_break_count == 0
    for call in (compilation.compiled(module), module):
        point = x.clone().requires_grad_()
        value = call(point)
        found.append(
            [value, *torch.autograd.grad((value * x.cos()).sum(), [point, *module.parameters()])]
        )
    (values, slopes, *betas), (other_values, other_slopes, *other_betas) = found
    for row, name in enumerate(ACTIVATIONS):
        torch.testing.assert_close(values[row], other_values[row], msg=f"{name}: other values")
        torch.testing.assert_close(slopes[row], other_slopes[row], msg=f"{name}: another gradient")
    assert len(betas) == sum(info.learned for info in ACTIVATIONS.values())
    torch.testing.assert_close(betas, other_betas)


@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        ("relu_smooth_backward", {"attacker_activation": "relu", "ema_decay": 0.5}),
        pytest.param("smoothrelu_learned", {"objective": "trades"}, marks=pytest.mark.fault),
        pytest.param("silu", {"attack_replays": 2}, marks=pytest.mark.fault),
        pytest.param(
            "silu",
            {"objective": "mart", "awp_gamma": 0.01},
            marks=pytest.mark.fault,
            id="MART, AWP",
        ),
    ],
)
def test_a_compiled_training_is_the_plain_one_up_to_rounding(
    digits: Split, traced: None, activation: str, changes: dict[str, Any]
) -> None:
    model = small_model(activation)
    names = list(model.state_dict())
    (*_, ours), (*_, theirs) = (
        train(one, digits, **SHORT, **changes, compile=do)
        for one, do in ((model, True), (small_model(activation), False))
    )
    assert list(model.state_dict()) == list(ours.state.weights) == names
    assert_close(ours, theirs, within=1e-5)


def wrong_attacker(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Stand for a compiler that loses a hand-written backward pass."""
    other = copy.deepcopy(module)
    for name in [name for name, part in module.named_modules() if isinstance(part, Activation)]:
        other.set_submodule(name, make_activation("relu"))
    return other


def test_a_graph_with_another_backward_pass_is_noticed_before_the_first_step(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sat_ray.training.adversary, "compiled", wrong_attacker)
    with pytest.raises(
        ArithmeticError,
        match=r"gradient of the compiled attacker's view differs by [\d.]+ % .* at most 1 %",
    ):
        train(small_model("relu_smooth_backward"), digits, **SHORT, compile=True)


ASKED = {"what": "model", "asked": "training.compile"}


def test_rounding_is_allowed_and_nan_is_not() -> None:
    one = {"logits": torch.ones(4), "gradient": torch.arange(4.0)}
    require_agreement(
        {name: tensor * 1.005 for name, tensor in one.items()},
        one,
        one,
        precision="float32",
        **ASKED,
    )
    for name in one:
        for bad in (1.02, float("nan")):
            with pytest.raises(ArithmeticError, match=f"{name} of the compiled model"):
                require_agreement(
                    {**one, name: one[name] * bad}, one, one, precision="float32", **ASKED
                )


def test_in_bf16_compiled_gradients_may_be_as_far_from_float32_as_plain_ones_but_not_longer() -> (
    None
):
    """Gradients of a deep network in bf16: half of their length, or all of it, is rounding, which
    differs from kernel to kernel.
    """
    exact, *noise = torch.randn(3, 100_000, generator=torch.Generator().manual_seed(0))
    for size, others in ((0.5, (1.4, 2.0, 0.6, 0.0)), (1.1, (1.6, 2.0, 0.0))):
        plain, compiled = ({"gradient": exact + size * one} for one in noise)
        assert (compiled["gradient"] - plain["gradient"]).norm() > 1.2 * size * exact.norm()
        require_agreement(compiled, plain, {"gradient": exact}, precision="bf16", **ASKED)
        for factor in others:
            with pytest.raises(
                ArithmeticError,
                match=(
                    r"gradient of the compiled model (is wrong in length|is longer or "
                    r"shorter|differs) by"
                ),
            ):
                require_agreement(
                    {"gradient": factor * compiled["gradient"]},
                    plain,
                    {"gradient": exact},
                    precision="bf16",
                    **ASKED,
                )


def test_one_tensor_with_a_wrong_gradient_is_named_and_those_of_rounding_alone_are_not() -> None:
    """A bias before BatchNorm has no gradient: what kernels leave there is rounding,
    whatever its size in units of its own.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "conv.weight": 4000,
        "conv.bias": 80,
        "norm.weight": 70,
        "head.weight": 3,
        "head.bias": 2,
    }

    def gradients(error: float) -> dict[str, Tensor]:
        size = {"conv.bias": 1e-9}
        torch.manual_seed(1)
        found = {name: size.get(name, 1.0) * torch.randn(count) for name, count in sizes.items()}
        return gradients_by_name(
            (name, one + error * torch.randn(one.shape, generator=generator))
            for name, one in found.items()
        )

    exact, plain, compiled = gradients(0.0), gradients(1e-6), gradients(1e-6)
    assert set(exact) == {
        *(f"gradient of {name}" for name in ("conv.weight", "conv.bias", "norm.weight")),
        "gradients of small tensors",
    }
    require_agreement(compiled, plain, exact, precision="float32", **ASKED)
    for name in ("gradient of norm.weight", "gradients of small tensors"):
        with pytest.raises(ArithmeticError, match=f"{name} of the compiled model differs by 100 %"):
            require_agreement(
                {**compiled, name: 0 * compiled[name]}, plain, exact, precision="float32", **ASKED
            )


def test_a_machine_without_a_compiler_refuses_in_one_line_and_so_does_an_alpha_that_moves(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = {"gradient": "float32", "field": "evaluation.gradient", "accelerator": ""}
    for refuse in (
        lambda: train(small_model(), digits, compile=True),
        lambda: check_machine(**machine, compiles_training=True),
    ):
        with pytest.raises(
            ValueError,
            match=r"^training\.compile is True, but there is no C\+\+ compiler here; choose .*CXX$",
        ):
            refuse()
    with pytest.raises(
        ValueError, match=r"training\.compile must be False where alpha_start is not 1, got True"
    ):
        TrainingSettings(compile=True, alpha_start=0.5)


def test_compiled_kernels_are_another_environment() -> None:
    plain = numerical_environment(accelerator="", threads=1, slots=8)
    assert numerical_environment(accelerator="", threads=1, slots=8, compiled=True) == plain | {
        "kernels": "torch.compile"
    }


def one_of_two_workers(rank: int, folder: str) -> None:
    """Run as a separate process: train compiled as one of two gloo workers, leave the weights."""
    with worker_of_two(rank, folder) as group:
        (*_, last) = train(
            small_model("smoothrelu"), digits_again(), **SHORT, compile=True, process_group=group
        )
    torch.save(last.state.weights, f"{folder}/{rank}.pt")


@pytest.mark.fault
def test_two_workers_with_compiled_kernels_equal_one_with_plain_ones(
    digits: Split, tmp_path: Path
) -> None:
    in_two_processes(f"test_compilation.one_of_two_workers({{rank}}, {str(tmp_path)!r})")
    (*_, plain) = train(small_model("smoothrelu"), digits, **SHORT)
    for rank in (0, 1):
        for name, tensor in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(
                tensor,
                plain.state.weights[name],
                rtol=0,
                atol=1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.fault
def test_compiled_kernels_train_every_size_of_images_like_plain_ones_and_resume_bit_for_bit(
    digits: Split,
) -> None:
    images, ramp = (
        enlarged(digits),
        {"epochs": 2, "resize_start": 8, "resize_step": 4, "resize_ramp": 1.0},
    )
    changes = SHORT | ramp
    first, last = train(small_model("relu_smooth_backward"), images, **changes, compile=True)
    (*_, plain) = train(small_model("relu_smooth_backward"), images, **changes)
    assert_close(last, plain, within=1e-4)
    (stopped,) = train(
        small_model("relu_smooth_backward"), images, **changes, compile=True, until=1
    )
    state = dataclasses.replace(
        stopped.state,
        best={},
        best_epoch=-1,
        best_score=(-1.0, -1.0),
        history=first.state.history[:1],
    )
    (resumed,) = train(
        small_model("relu_smooth_backward"), images, **changes, compile=True, state=state
    )
    assert_same_bits(resumed.state, last.state)


@pytest.mark.fault
def test_compiled_kernels_in_bf16_agree_with_plain_ones(digits: Split) -> None:
    ours, theirs = (
        train(small_model("gelu"), digits, **SHORT, precision="bf16", compile=do)[-1].metrics
        for do in (True, False)
    )
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0.02)
