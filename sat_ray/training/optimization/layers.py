"""Layer-wise decay of the learning rate: the layers of a network, numbered from its input.

    rate of layer l  =  decay ** (L - 1 - l),    l = 0 .. L - 1         (Bao et al. 2022, BEiT)

Layers are the parts of a network in the order in which its constructor defines them:

- nn.Sequential and nn.ModuleList are opened, and each of their parts counts by itself: every
  residual or transformer block is one layer;
- a part without convolution or linear weights (a norm, an activation with a learned alpha) belongs
  to the layer before it, and parameters of the network itself (a class token) to the first;
- a network that is a single part is opened too.

The networks of timm number their layers themselves (`group_matcher`), and those numbers are used.
"""

from collections.abc import Iterator

from torch import nn

from sat_ray.models import Normalized

_OPENED = (nn.Sequential, nn.ModuleList)


def layer_scales(model: nn.Module, *, decay: float) -> dict[int, float]:
    """Return the factor on the learning rate of every parameter, by its id.

    {} for a decay of 1. Raises ValueError where the network has one layer.
    """
    if decay == 1:
        return {}
    layers = layers_of(model)
    last = max(layers.values())
    if last == 0:
        raise ValueError(
            f"training.layer_decay must be 1 for a network of one layer, got {decay:g}; "
            "put the layers of the network into an nn.Sequential or nn.ModuleList"
        )
    return {
        id(parameter): decay ** (last - layers[name])
        for name, parameter in model.named_parameters()
    }


def layers_of(model: nn.Module) -> dict[str, int]:
    """Return the layer of every parameter by its name, counted from 0 at the input."""
    for path, module in model.named_modules():
        if callable(getattr(module, "group_matcher", None)) and _is_of_timm(module):
            return dict.fromkeys(_names(model), 0) | _layers_of_timm(module, _prefix(path))
    network, prefix = (model.body, "body.") if isinstance(model, Normalized) else (model, "")
    layers = dict.fromkeys(_names(model), 0)
    number = -1
    for path, part in _parts(network, prefix):
        if any(parameter.dim() >= 2 for parameter in part.parameters()):
            number += 1
        layers |= {f"{_prefix(path)}{name}": max(number, 0) for name in _names(part)}
    return layers


def _parts(network: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """Return the parts of a network that count as layers, with their paths."""
    parts = list(_opened(network, prefix))
    weighty = [(path, part) for path, part in parts if any(True for _ in part.parameters())]
    if len(weighty) == 1 and any(True for _ in weighty[0][1].children()):
        path, only = weighty[0]
        return _parts(only, _prefix(path))
    return parts


def _opened(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, _OPENED):
            yield from _opened(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _is_of_timm(module: nn.Module) -> bool:
    return any(base.__module__.partition(".")[0] == "timm" for base in type(module).__mro__)


def _layers_of_timm(network: nn.Module, prefix: str) -> dict[str, int]:
    from timm.models import group_parameters  # of a network of timm, so timm is there

    matcher = network.group_matcher(coarse=False)  # type: ignore[operator]
    found = group_parameters(network, matcher, reverse=True)
    return {f"{prefix}{name}": int(layer) for name, layer in found.items()}


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def _prefix(path: str) -> str:
    return f"{path}." if path else ""
