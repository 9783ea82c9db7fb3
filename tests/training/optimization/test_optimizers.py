"""Optimizer details of training, each against what
its formula says about one or a few real steps.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import SMALL, small_model, train

import sat_ray.training.validation
from sat_ray.data.split import Split
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized
from sat_ray.training.loop import EpochReport
from sat_ray.training.optimization.ema import WeightAverage
from sat_ray.training.optimization.optimizer import (
    decaying_weights,
    make_optimizer,
    parameter_groups,
    restore_state,
    set_learning_rate,
    state_of,
)
from sat_ray.training.settings import TrainingSettings


def without_batchnorm() -> Normalized:
    """Build a model that treats every image alone."""
    model = small_model()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return model


def moved(model: Normalized, report: EpochReport) -> dict[str, Tensor]:
    """Return how far one training has moved each parameter from the weights of a fresh model."""
    return {name: report.state.weights[name] - p.detach() for name, p in model.named_parameters()}


def length(tensors: dict[str, Tensor]) -> float:
    """Return the L2 norm over all tensors."""
    return math.sqrt(sum(t.double().square().sum().item() for t in tensors.values()))


@pytest.mark.parametrize("activation", ["smoothrelu_learned", "silu_learned", "gelu_learned"])
def test_weight_decay_reaches_matrices_alone_and_learned_alphas_have_their_own_group(
    activation: str,
) -> None:
    model = small_model(activation)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.1, alpha_learning_rate=3.0)
    decayed, free, alphas = ([names[id(p)] for p in group["params"]] for group in groups)  # type: ignore[attr-defined]
    assert sorted([*decayed, *free, *alphas]) == sorted(names.values())
    assert [(group["weight_decay"], group["rate"]) for group in groups] == [
        (0.1, 1.0),
        (0.0, 1.0),
        (0.0, 3.0),
    ]
    assert all(model.get_parameter(name).dim() >= 2 for name in decayed)
    assert all(
        name.endswith((".bias", "bn1.weight", "bn2.weight", "downsample.1.weight")) for name in free
    )
    assert len(alphas) == 7 and all(name.endswith(".beta") for name in alphas)
    assert len(parameter_groups(small_model(), weight_decay=0.1)) == 2


def test_a_network_can_name_weights_that_do_not_decay() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Parameter(torch.zeros(1, 4, 3))
            self.proj = nn.Linear(3, 2)

        def no_weight_decay(self) -> set[str]:
            return {"embedding"}

    model = nn.Sequential(Positions(), nn.Linear(2, 2))
    (decayed, free) = (group["params"] for group in parameter_groups(model, weight_decay=0.1))
    assert decayed == decaying_weights(model) == [model[0].proj.weight, model[1].weight]
    assert free == [model[0].embedding, model[0].proj.bias, model[1].bias]


def gradients_of_step(model: nn.Module, step: int) -> dict[str, Tensor]:
    """Return a gradient for every parameter, another in every step."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def take_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, *, learning_rate: float
) -> None:
    """Take steps along the gradients above."""
    for step in steps:
        set_learning_rate(optimizer, learning_rate)
        for name, gradient in gradients_of_step(model, step).items():
            model.get_parameter(name).grad = gradient
        optimizer.step()


def test_adamw_is_its_formula_with_decay_beside_the_step_of_matrices_alone() -> None:
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, bias-corrected;
    w = w - lr d w - lr m / (sqrt(v) + eps), in float64.
    """
    lr, decay, b1, b2, eps = 0.01, 0.3, 0.8, 0.95, 1e-3
    model = small_model("smoothrelu_learned")
    settings = TrainingSettings(
        optimizer="adamw",
        weight_decay=decay,
        adamw_beta1=b1,
        adamw_beta2=b2,
        adamw_eps=eps,
        alpha_learning_rate=3.0,
    )
    expected = {}
    for name, parameter in model.named_parameters():
        w = parameter.detach().double()
        m = v = torch.zeros_like(w)
        rate = 3 * lr if name.endswith("beta") else lr
        for step in range(1, 4):
            g = gradients_of_step(model, step)[name].double()
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            if w.dim() >= 2:
                w = w - rate * decay * w
            w = w - rate * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
        expected[name] = w
    take_steps(model, make_optimizer(model, settings), range(1, 4), learning_rate=lr)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_optimizer_that_gets_its_state_back_goes_on_bit_for_bit(optimizer: str) -> None:
    settings = TrainingSettings(optimizer=optimizer, layer_decay=0.7)
    straight = small_model("smoothrelu_learned")
    its_own = make_optimizer(straight, settings)
    assert state_of(straight, its_own) == {}
    take_steps(straight, its_own, range(2), learning_rate=0.01)
    saved = {name: value.clone() for name, value in state_of(straight, its_own).items()}
    weights = {name: value.clone() for name, value in straight.state_dict().items()}
    take_steps(straight, its_own, range(2, 4), learning_rate=0.01)
    other = small_model("smoothrelu_learned")
    fresh = make_optimizer(other, settings)
    take_steps(other, fresh, range(7, 9), learning_rate=1.0)  # a state that must go
    other.load_state_dict(weights)
    restore_state(other, fresh, saved)
    take_steps(other, fresh, range(2, 4), learning_rate=0.01)
    kinds = {"sgd": {"momentum_buffer"}, "adamw": {"exp_avg", "exp_avg_sq", "step"}}
    assert {name.partition("/")[0] for name in saved} == kinds[optimizer]
    for name, value in straight.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    for name, value in state_of(straight, its_own).items():
        assert torch.equal(state_of(other, fresh)[name], value), name


def test_with_layer_decay_each_layer_moves_by_its_share_of_the_step(digits: Split) -> None:
    """One step of plain SGD; small_resnet has five layers, and alphas scale with theirs."""
    plain = {"images": 32, "epochs": 1, "momentum": 0.0, "weight_decay": 0.0}
    whole, scaled = (
        moved(
            small_model("smoothrelu_learned"),
            train(small_model("smoothrelu_learned"), digits, **plain, layer_decay=decay)[0],
        )
        for decay in (1.0, 0.5)
    )
    layers = {"conv1": 0, "bn1": 0, "relu": 0, "layer1": 1, "layer2": 2, "layer3": 3, "fc": 4}
    for name, step in whole.items():
        factor = 0.5 ** (4 - layers[name.split(".")[1]])
        tolerance = 1e-5 if name.endswith("beta") else 1e-7  # beta starts at 20
        torch.testing.assert_close(scaled[name], factor * step, rtol=1e-3, atol=tolerance)
    assert all(bool(scaled[name].any()) for name in whole if not name.endswith("beta"))


def test_learned_alphas_follow_their_own_learning_rate_and_nothing_else_does(digits: Split) -> None:
    once, thrice = (
        moved(
            small_model("smoothrelu_learned"),
            train(small_model("smoothrelu_learned"), digits, images=32, epochs=1, **rate)[0],
        )
        for rate in ({}, {"alpha_learning_rate": 3.0})
    )
    for name, step in once.items():
        factor = 3.0 if name.endswith("beta") else 1.0
        torch.testing.assert_close(
            thrice[name], factor * step, rtol=1e-5, atol=1e-5 if factor == 3.0 else 0.0
        )  # beta starts at 20
    assert all(once[name] != 0 for name in once if name.endswith("beta"))


def test_a_global_batch_in_four_groups_is_the_update_of_one_large_batch(digits: Split) -> None:
    """Without BatchNorm the groups are gradient accumulation and nothing else:
    weights have moved alike after three updates.
    """
    large, small = (
        train(without_batchnorm(), digits, images=96, epochs=1, batchnorm_group_size=size)
        for size in (32, 8)
    )
    one, other = (moved(without_batchnorm(), reports[0]) for reports in (large, small))
    assert length({name: other[name] - step for name, step in one.items()}) < 1e-3 * length(one)
    assert small[0].metrics["train/loss"] == pytest.approx(large[0].metrics["train/loss"], abs=1e-5)


def test_clipping_shortens_the_gradient_of_the_global_batch_and_keeps_its_direction(
    digits: Split,
) -> None:
    """Without momentum and decay, one step is -learning_rate times the gradient."""
    plain = {"images": 32, "epochs": 1, "momentum": 0.0, "weight_decay": 0.0}
    free = moved(small_model(), train(small_model(), digits, **plain)[0])
    norm = length(free) / SMALL.learning_rate
    clipped = moved(small_model(), train(small_model(), digits, **plain, gradient_clip=norm / 4)[0])
    assert length(clipped) == pytest.approx(length(free) / 4, rel=1e-4)
    for name, step in free.items():
        torch.testing.assert_close(clipped[name], step / 4, rtol=1e-3, atol=1e-7)
    untouched = moved(
        small_model(), train(small_model(), digits, **plain, gradient_clip=2 * norm)[0]
    )
    assert all(torch.equal(untouched[name], step) for name, step in free.items())


def test_the_average_is_its_formula_and_its_buffers_are_copies() -> None:
    torch.manual_seed(0)
    followed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(followed, decay=0.3)
    expected = followed[0].weight.detach().double()
    for number in range(6):
        with torch.no_grad():
            followed[0].weight.add_(torch.randn(4, 3))
        followed(torch.randn(8, 3))
        average.update(number)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * followed[0].weight.detach().double()
    torch.testing.assert_close(average.model[0].weight.double(), expected, rtol=0, atol=1e-6)
    before = {name: buffer.clone() for name, buffer in average.model.named_buffers()}
    assert all(torch.equal(buffer, followed.get_buffer(name)) for name, buffer in before.items())
    followed(torch.randn(8, 3) + 5)
    assert all(
        torch.equal(average.model.get_buffer(name), buffer) for name, buffer in before.items()
    )
    assert not torch.equal(before["1.running_mean"], followed[1].running_mean)


def test_what_is_validated_and_kept_as_best_is_the_average(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, Tensor]] = []

    def watched(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        validated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(sat_ray.training.validation, "evaluate", watched)
    (report,) = train(small_model(), digits, epochs=1, ema_decay=0.5)
    state = report.state
    for tensors in (state.best, *validated):
        assert tensors.keys() == state.average.keys()
        assert all(torch.equal(tensor, state.average[name]) for name, tensor in tensors.items())
    assert len(validated) == 1
    assert not torch.equal(state.average["body.fc.weight"], state.weights["body.fc.weight"])
    assert torch.equal(
        state.average["body.bn1.running_mean"], state.weights["body.bn1.running_mean"]
    )
    (plain,) = train(small_model(), digits, epochs=1)
    assert all(
        torch.equal(plain.state.weights[name], tensor) for name, tensor in state.weights.items()
    )
