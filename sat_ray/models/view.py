"""A view: a second module tree over the same parameters and buffers.

It has other activations and a train/eval flag of its own.

The attacker differentiates through a view. Nothing is toggled on the model that trains, and nothing
needs to be put back.
"""

from torch import nn

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import activation_info, make_activation
from sat_ray.models.spec import check_attacker_activation


def _clone(
    module: nn.Module, replace: tuple[str, float | None] | None, memo: dict[int, object]
) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[return-value]
    if isinstance(module, Activation) and replace is not None:
        clone: nn.Module = make_activation(replace[0], alpha=replace[1])
    else:
        clone = module.__class__.__new__(module.__class__)
        clone.__dict__.update(module.__dict__)
        clone._parameters = {name: _alias(p, memo) for name, p in module._parameters.items()}
        clone._buffers = dict(module._buffers)
        clone._modules = {
            name: None if child is None else _clone(child, replace, memo)
            for name, child in module._modules.items()
        }
    memo[id(module)] = clone
    return clone


def _alias(parameter: nn.Parameter | None, memo: dict[int, object]) -> nn.Parameter | None:
    if parameter is None:
        return None
    if id(parameter) not in memo:
        # a second Parameter over the same storage: freezing the shared object itself would freeze
        # the model
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return memo[id(parameter)]  # type: ignore[return-value]


def view(
    model: nn.Module, activation: str | None = None, *, alpha: float | None = None
) -> nn.Module:
    """Return a view of `model` in inference mode.

    Its parameters are frozen aliases of the model's.

    activation: what the view uses, None for the model's own (a learned alpha is then shared). Make
    it after device, dtype and memory layout are settled. Raises ValueError where the view's forward
    pass would differ from the model's.
    """
    replace = None
    if activation is not None:
        for module in model.modules():
            if isinstance(module, Activation):
                check_attacker_activation(module.activation, module.alpha, activation, alpha)
                if module.activation != activation or module.alpha != activation_info(
                    activation
                ).check_alpha(alpha):
                    replace = (activation, alpha)
    return _clone(model, replace, {}).eval()


def assert_shares_storage(model: nn.Module, other: nn.Module) -> None:
    """Assert that every parameter and buffer of the view `other` lies in the memory of `model`."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in (dict(other.named_parameters()) | dict(other.named_buffers())).items():
        assert tensor.data_ptr() == own[name].data_ptr(), (
            f"{name} of the view no longer aliases the model"
        )
