"""Replace every ReLU and SiLU module of a network by a module of a registered activation."""

from torch import nn

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import make_activation

REPLACED = (nn.ReLU, nn.SiLU)  # what residual networks and EfficientNets come with


def inject_activation(
    model: nn.Module,
    *,
    activation: str,
    alpha: float | None = None,
    replaced: tuple[type[nn.Module], ...] = REPLACED,
) -> int:
    """Replace every activation module of `model` in place.

    Returns how many activation modules it now has.

    replaced: the classes that are replaced. No random number is drawn. Raises ValueError on a bad
    activation, AssertionError if one survives or none was found.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, replaced):
                setattr(parent, name, make_activation(activation, alpha=alpha))
    made = [module for module in model.modules() if isinstance(module, Activation)]
    inside = {
        id(part) for module in made for part in module.modules()
    }  # a user-defined activation may use them
    left = [
        module
        for module in model.modules()
        if isinstance(module, replaced) and id(module) not in inside
    ]
    assert made and not left, "an activation was not replaced"
    return len(made)
