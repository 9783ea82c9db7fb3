"""SGD for a training: which weights decay, the learning rate of each group, momentum by name."""

from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.training.settings import TrainingSettings


def parameter_groups(
    model: nn.Module, *, weight_decay: float, alpha_learning_rate: float = 1.0
) -> list[dict[str, object]]:
    """Return the optimizer's groups: only convolution and linear weights decay.

    Learned alphas are a group of their own. rate: learning rate of a group, in units of the
    training's.
    """
    betas = [
        module.beta
        for module in model.modules()
        if isinstance(module, Activation) and module.learned
    ]
    learned = {id(beta) for beta in betas}
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2 and id(p) not in learned]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay, "rate": 1.0},
        {"params": others, "weight_decay": 0.0, "rate": 1.0},
    ]
    if betas:
        groups.append({"params": betas, "weight_decay": 0.0, "rate": alpha_learning_rate})
    return groups


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    """Build SGD with Nesterov momentum, where there is any momentum."""
    groups = parameter_groups(
        model, weight_decay=settings.weight_decay, alpha_learning_rate=settings.alpha_learning_rate
    )
    rates: dict[str, Any] = {
        "lr": settings.learning_rate,
        "momentum": settings.momentum,
        "nesterov": settings.momentum > 0,
    }
    return torch.optim.SGD(groups, **rates, fused=fuses(model))


def fuses(model: nn.Module) -> bool | None:
    """Return the optimizer's argument `fused`: True on a GPU, where few kernels update all weights.

    None on a CPU, which is torch's own choice: fused kernels would round in another way there.
    """
    return True if all(parameter.is_cuda for parameter in model.parameters()) else None


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every group in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


def momentum_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the momentum buffers by parameter name; empty before the first step."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: state["momentum_buffer"]
        for p, state in optimizer.state.items()
        if "momentum_buffer" in state
    }


def restore_momentum(
    model: nn.Module, optimizer: torch.optim.Optimizer, momentum: dict[str, Tensor]
) -> None:
    """Restore what `momentum_of` returned, on the device and in the layout of the parameters.

    Momentum of other parameters is removed.
    """
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in momentum:
            optimizer.state[parameter] = {
                "momentum_buffer": torch.empty_like(parameter).copy_(momentum[name])
            }
