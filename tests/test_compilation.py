"""Compiled training: the same numbers up to rounding, the same weights by name, whatever the activation; and what it refuses.

Traced and differentiated as any compiled model is, run by torch's own kernels (backend aot_eager): seconds. Real kernels: marker fault.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import assert_same_bits, digits_again, enlarged, in_two_processes, small_model, train, worker_of_two

import sat_ray.crafting
from pipelines.arrival import check_machine
from sat_ray import compilation
from sat_ray.activations import ACTIVATIONS, make_activation
from sat_ray.agreement import require_agreement
from sat_ray.data.split import Split
from sat_ray.models import view
from sat_ray.stages import numerical_environment
from sat_ray.training import EpochReport, TrainingSettings

SHORT: dict[str, Any] = {"images": 64, "epochs": 2}  # two updates an epoch, of two groups each


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the kernels to torch."""
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


def assert_close(ours: EpochReport, theirs: EpochReport, *, within: float) -> None:
    """Assert that two trainings left the same weights, statistics and momentum by name, up to rounding."""
    for part in ("weights", "momentum", "best"):
        one, other = getattr(ours.state, part), getattr(theirs.state, part)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=within, msg=f"{part} {name}")


class EveryActivation(nn.Module):
    """All of the registry side by side. x: (N,) -> (activations, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ModuleList(make_activation(name) for name in ACTIVATIONS)

    def forward(self, x: Tensor) -> Tensor:
        """Return a row from each."""
        return torch.stack([one(row) for one, row in zip(self.all, x, strict=True)])


def test_every_activation_is_traced_without_a_break_and_keeps_its_own_gradient(traced: None) -> None:
    module, found = EveryActivation(), []
    x = torch.linspace(-3, 3, 61).repeat(len(ACTIVATIONS), 1)
    assert torch._dynamo.explain(module)(x.clone().requires_grad_()).graph_break_count == 0
    for call in (compilation.compiled(module), module):
        point = x.clone().requires_grad_()
        value = call(point)
        found.append([value, *torch.autograd.grad((value * x.cos()).sum(), [point, *module.parameters()])])
    (values, slopes, beta), (other_values, other_slopes, other_beta) = found
    for row, name in enumerate(ACTIVATIONS):
        torch.testing.assert_close(values[row], other_values[row], msg=f"{name}: other values")
        torch.testing.assert_close(slopes[row], other_slopes[row], msg=f"{name}: another gradient")
    torch.testing.assert_close(beta, other_beta)  # of the learned alpha


@pytest.mark.parametrize(
    ("activation", "changes"),
    [
        ("relu_smooth_backward", {"attacker_activation": "relu", "ema_decay": 0.5}),
        pytest.param("smoothrelu_learned", {"objective": "trades"}, marks=pytest.mark.fault),
        pytest.param("silu", {"attack_replays": 2}, marks=pytest.mark.fault),
    ],
)
def test_a_compiled_training_is_the_plain_one_up_to_rounding(digits: Split, traced: None, activation: str, changes: dict[str, Any]) -> None:
    model = small_model(activation)
    names = list(model.state_dict())
    (*_, ours), (*_, theirs) = (
        train(one, digits, **SHORT, **changes, compile=do) for one, do in ((model, True), (small_model(activation), False))
    )
    assert list(model.state_dict()) == list(ours.state.weights) == names
    assert_close(ours, theirs, within=1e-5)


def wrong_attacker(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Stand for a compiler that loses a hand-written backward pass."""
    return view(module, "relu")


def test_a_graph_with_another_backward_pass_is_noticed_before_the_first_step(digits: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sat_ray.crafting, "compiled", wrong_attacker)
    with pytest.raises(ArithmeticError, match=r"gradients of the compiled attacker's view differ by [\d.]+ % .* allowed: 1 %"):
        train(small_model("relu_smooth_backward"), digits, **SHORT, compile=True)


def test_rounding_is_allowed_and_nan_is_not() -> None:
    one = [torch.ones(4), torch.arange(4.0)]
    asked = {"what": "model", "precision": "float32", "asked": "training.compile"}
    require_agreement([tensor * 1.005 for tensor in one], one, one, **asked)
    for bad in (1.02, float("nan")):
        with pytest.raises(ArithmeticError, match="logits of the compiled model"):
            require_agreement([one[0] * bad, one[1]], one, one, **asked)


def test_in_bf16_compiled_gradients_may_be_as_far_from_float32_as_plain_ones_but_not_twice_as_long() -> None:
    """Gradients of a deep network in bf16: half of their length is rounding, which differs from kernel to kernel."""
    exact, *noise = torch.randn(3, 100_000, generator=torch.Generator().manual_seed(0))
    plain, compiled = (exact + 0.5 * one for one in noise)
    assert (compiled - plain).norm() > 0.6 * exact.norm()
    asked = {"what": "model", "precision": "bf16", "asked": "training.compile"}
    require_agreement([exact, compiled], [exact, plain], [exact, exact], **asked)
    for wrong in (1.3 * compiled, 2 * compiled, 0.7 * compiled, 0 * compiled):
        with pytest.raises(ArithmeticError, match=r"gradients of the compiled model (are wrong in length|differ)"):
            require_agreement([exact, wrong], [exact, plain], [exact, exact], **asked)


def test_a_machine_without_a_compiler_refuses_in_one_line_and_so_does_an_alpha_that_moves(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = {"gradient": "float32", "field": "evaluation.gradient", "accelerator": ""}
    for refuse in (lambda: train(small_model(), digits, compile=True), lambda: check_machine(**machine, compiles_training=True)):
        with pytest.raises(ValueError, match=r"^training\.compile is True, but there is no C\+\+ compiler here; allowed: False, or .*CXX$"):
            refuse()
    with pytest.raises(ValueError, match=r"training\.compile is True; allowed: False, or alpha_start 1"):
        TrainingSettings(compile=True, alpha_start=0.5)


def test_compiled_kernels_are_another_environment() -> None:
    plain = numerical_environment(accelerator="", threads=1, lanes=8)
    assert numerical_environment(accelerator="", threads=1, lanes=8, compiled=True) == plain | {"kernels": "torch.compile"}


def one_of_two_workers(rank: int, folder: str) -> None:
    """Run as a process of its own: train compiled as one of two gloo workers and leave the weights behind."""
    with worker_of_two(rank, folder) as world:
        (*_, last) = train(small_model("smoothrelu"), digits_again(), **SHORT, compile=True, world=world)
    torch.save(last.state.weights, f"{folder}/{rank}.pt")


@pytest.mark.fault
def test_two_workers_with_compiled_kernels_equal_one_with_plain_ones(digits: Split, tmp_path: Path) -> None:
    in_two_processes(f"test_compilation.one_of_two_workers({{rank}}, {str(tmp_path)!r})", timeout=500)
    (*_, plain) = train(small_model("smoothrelu"), digits, **SHORT)
    for rank in (0, 1):
        for name, tensor in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(tensor, plain.state.weights[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.fault
def test_compiled_kernels_train_every_size_of_images_like_plain_ones_and_resume_bit_for_bit(digits: Split) -> None:
    images, ramp = enlarged(digits), {"epochs": 2, "resize_start": 8, "resize_step": 4, "resize_ramp": 1.0}
    changes = SHORT | ramp
    first, last = train(small_model("relu_smooth_backward"), images, **changes, compile=True)
    (*_, plain) = train(small_model("relu_smooth_backward"), images, **changes)
    assert_close(last, plain, within=1e-4)
    (stopped,) = train(small_model("relu_smooth_backward"), images, **changes, compile=True, until=1)
    state = dataclasses.replace(stopped.state, best={}, best_epoch=-1, best_score=(-1.0, -1.0), history=first.state.history[:1])
    (resumed,) = train(small_model("relu_smooth_backward"), images, **changes, compile=True, state=state)
    assert_same_bits(resumed.state, last.state)


@pytest.mark.fault
def test_compiled_kernels_in_bf16_agree_with_plain_ones(digits: Split) -> None:
    ours, theirs = (train(small_model("gelu"), digits, **SHORT, precision="bf16", compile=do)[-1].metrics for do in (True, False))
    assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=0.02)
