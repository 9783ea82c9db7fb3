"""The optimizer of a training: which weights decay, the learning rate of each group, its state.

SGD with Nesterov momentum, or AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101), whose weight decay
is taken from the weights beside the step, in units of the learning rate. Both are torch's own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.training.optimization.layers import layer_scales
from sat_ray.training.settings import TrainingSettings

COUNTER = "step"  # AdamW's, one number for each parameter


def decaying_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the convolution and linear weights, in the order of the network.

    A network may name others that do not decay in a method `no_weight_decay()`, as timm's do for
    position embeddings.
    """
    excluded = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, module in model.named_modules()
        if callable(names := getattr(module, "no_weight_decay", None))
        for name in names()
    }
    return [p for name, p in model.named_parameters() if p.dim() >= 2 and name not in excluded]


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    alpha_learning_rate: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, object]]:
    """Return the optimizer's groups: only convolution and linear weights decay.

    Learned alphas are groups of their own. rate: learning rate of a group, in units of the
    training's; with a layer_decay below 1 every layer has its own.
    """
    betas = [
        module.beta
        for module in model.modules()
        if isinstance(module, Activation) and module.learned
    ]
    matrices = decaying_weights(model)
    elsewhere = {id(p) for p in (*matrices, *betas)}
    others = [p for p in model.parameters() if id(p) not in elsewhere]
    scales = layer_scales(model, decay=layer_decay)
    return [
        {"params": members, "weight_decay": decay, "rate": rate * scale}
        for parameters, decay, rate in (
            (matrices, weight_decay, 1.0),
            (others, 0.0, 1.0),
            (betas, 0.0, alpha_learning_rate),
        )
        for scale, members in _by_scale(parameters, scales)
    ]


def _by_scale(
    parameters: list[nn.Parameter], scales: Mapping[int, float]
) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """Yield the parameters of every scale. scales: by the id of a parameter, 1 where missing."""
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        found.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
    yield from found.items()


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Build the optimizer that the settings name.

    Raises ValueError where the network has no layers whose rates could differ.
    """
    groups = parameter_groups(
        model,
        weight_decay=settings.weight_decay,
        alpha_learning_rate=settings.alpha_learning_rate,
        layer_decay=settings.layer_decay,
    )
    rates: dict[str, Any] = {"lr": settings.learning_rate, "fused": fuses(model)}
    if settings.optimizer == "adamw":
        betas = (settings.adamw_beta1, settings.adamw_beta2)
        return torch.optim.AdamW(groups, betas=betas, eps=settings.adamw_eps, **rates)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=nesterov, **rates)


def fuses(model: nn.Module) -> bool | None:
    """Return the optimizer's argument `fused`: True on a GPU, where few kernels update all weights.

    None on a CPU, which is torch's own choice: fused kernels would round in another way there.
    """
    return True if all(parameter.is_cuda for parameter in model.parameters()) else None


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every group in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state, keyed `kind/parameter`; empty before the first step.

    kind: torch's name, for example momentum_buffer.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{kind}/{names[id(p)]}": value
        for p, state in optimizer.state.items()
        for kind, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]
) -> None:
    """Restore what `state_of` returned, on the device and in the layout of the parameters.

    Any other state is removed.
    """
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        kind, _, name = key.partition("/")
        parameter = parameters[name]
        if kind == COUNTER:  # fused kernels count on the device of the weights, others on the CPU
            own = value.to(parameter.device if fuses(model) else "cpu", copy=True)
        else:
            own = torch.empty_like(parameter).copy_(value)
        optimizer.state[parameter][kind] = own
