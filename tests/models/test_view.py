"""A view is the same network twice: shared memory, other activations,
and nothing of the model toggled.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat_ray.activations.module import Activation
from sat_ray.attacks import PGD
from sat_ray.attacks.losses import cross_entropy
from sat_ray.models import (
    Normalized,
    assert_shares_storage,
    build_model,
    check_attacker_activation,
    view,
)
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

ATTACK = PGD(threat_model=ThreatModel("linf", 0.1), steps=2, step_size=0.1)


class ConvolutionBackwards(TorchDispatchMode):
    """Note which of (input, weight, bias) gradients each convolution is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[tuple[bool, ...]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


def small(activation: str = "relu", alpha: float | None = None) -> Normalized:
    """Build a small model in train mode."""
    return build_model(
        "small_resnet",
        activation=activation,
        alpha=alpha,
        num_classes=10,
        in_channels=1,
        width=4,
        seed=0,
    )


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    """Return random images and labels, the same every time."""
    noise = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=noise), torch.randint(
        0, 10, (count,), generator=noise
    )


def craft(model: nn.Module, count: int = 8) -> Tensor:
    """Run a short attack."""
    x, y = batch(count)
    return ATTACK.run(model, x, y, Randomness.of(0, range(count)))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy every parameter and buffer."""
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("attacker", [None, "relu", "relu_smooth_backward"])
def test_a_view_shares_every_parameter_and_buffer_and_follows_the_optimizer(
    attacker: str | None,
) -> None:
    model = small()
    attacked = view(model, attacker)
    x, y = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = attacked(x)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).mean().backward()
        optimizer.step()
    assert_shares_storage(model, attacked)
    assert dict(attacked.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert not torch.equal(attacked(x), before)
    assert torch.equal(attacked(x), model.eval()(x))


def test_a_model_whose_memory_moved_is_noticed() -> None:
    model = small()
    attacked = view(model)
    model.body.fc.weight.data = model.body.fc.weight.data.clone()
    with pytest.raises(AssertionError, match=r"body\.fc\.weight"):
        assert_shares_storage(model, attacked)


def test_a_view_infers_while_the_model_trains() -> None:
    model = small()
    attacked = view(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in attacked.modules())
    assert view(model.eval()).training is False
    assert not model.training


def test_crafting_through_a_view_never_moves_batchnorm_statistics() -> None:
    model = small()
    before = snapshot(model)
    craft(view(model))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model(batch()[0])  # the update's own forward does move them
    assert not torch.equal(
        before["body.bn1.running_mean"], model.state_dict()["body.bn1.running_mean"]
    )


def test_a_view_never_freezes_the_model() -> None:
    model = small("smoothrelu_learned")
    attacked = view(model)
    craft(attacked)
    assert not any(p.requires_grad for p in attacked.parameters())
    assert all(p.requires_grad for p in model.parameters())
    x, y = batch()
    cross_entropy(model(x), y).mean().backward()
    assert all(
        p.grad is not None and bool(p.grad.abs().sum() > 0)
        for p in model.parameters()
        if p.dim() >= 2
    )


def test_an_empty_submodule_keeps_the_models_own_train_flag() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential()).train()
    view(model)
    assert model[1].training


def test_no_weight_gradient_is_computed_while_attacking() -> None:
    model = small()
    for p in model.parameters():
        p.register_hook(lambda _: pytest.fail("a weight gradient was computed"))
    for attacked in (view(model), model.eval()):
        craft(attacked)
    assert all(p.grad is None for p in model.parameters())


def test_the_kernels_of_an_attack_are_asked_for_input_gradients_alone() -> None:
    with ConvolutionBackwards() as seen:
        craft(view(small()))
    assert len(seen.masks) == 9 * ATTACK.steps
    assert set(seen.masks) == {(True, False, False)}


def test_relu_and_its_smooth_backward_agree_forward_and_differ_backward() -> None:
    model = small()
    x, y = batch()
    gradients = []
    for attacked in (
        view(model, "relu"),
        view(model, "relu_smooth_backward"),
        view(model, "relu_smooth_backward", alpha=1.0),
    ):
        assert torch.equal(attacked(x), view(model)(x))
        point = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(cross_entropy(attacked(point), y).sum(), point)[0])
    assert not torch.allclose(gradients[0], gradients[1])
    assert not torch.allclose(gradients[1], gradients[2])


def test_a_learned_alpha_is_shared_with_the_view() -> None:
    model = small("smoothrelu_learned")
    for attacked in (view(model), view(model, "smoothrelu_learned")):
        assert_shares_storage(model, attacked)
        with torch.no_grad():
            model.body.relu.beta.mul_(0.5)
        assert torch.equal(attacked.body.relu.beta, model.body.relu.beta)
        assert torch.equal(attacked(batch()[0]), view(model)(batch()[0]))


def test_only_activations_are_exchanged() -> None:
    model = small()
    attacked = view(model, "relu_smooth_backward", alpha=5.0)
    pairs = list(zip(model.modules(), attacked.modules(), strict=True))
    assert all(type(a) is type(b) and a is not b for a, b in pairs)
    chosen = [b for _, b in pairs if isinstance(b, Activation)]
    assert len(chosen) == 7
    assert all(b.activation == "relu_smooth_backward" and b.alpha == 5.0 for b in chosen)
    assert all(a.activation == "relu" for a, _ in pairs if isinstance(a, Activation))


@pytest.mark.parametrize(
    ("own", "attacker"),
    [(("relu", None), ("silu", None)), (("silu", None), ("relu", None)),
     (("parametric_softplus", 10.0), ("parametric_softplus", 5.0)),
     (("relu", None), ("smoothrelu_learned", None)),
     (("smoothrelu", 400.0), ("smoothrelu_learned", None)),
     (("parametric_softplus", 10.0), ("relu_smooth_backward", 10.0)), (("elu", 1.0), ("celu", 1.0)),
     (("silu", 1.0), ("silu", 4.0)), (("silu", 1.0), ("silu_learned", None)),
     (("gelu", 1.0), ("gelu_learned", None)),
     (("silu_learned", None), ("silu", 1.0)), (("relu", None), ("silu_learned", None))],
)  # fmt: skip
def test_an_attacker_with_another_forward_is_refused(
    own: tuple[str, float | None], attacker: tuple[str, float | None]
) -> None:
    with pytest.raises(ValueError, match="attacker_activation"):
        check_attacker_activation(*own, *attacker)
    with pytest.raises(ValueError, match="attacker_activation"):
        view(small(*own), attacker[0], alpha=attacker[1])
