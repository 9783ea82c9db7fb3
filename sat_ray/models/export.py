"""Prepare a model for torch.export: activations with a hand-written backward pass are rewritten so that the export keeps it."""

import copy

import torch
from torch import Tensor, nn

from sat_ray.activations import Activation

_HAND_WRITTEN = ("smoothrelu", "smoothrelu_learned", "relu_smooth_backward")  # backward passes that torch.export would drop


class _Traceable(nn.Module):
    """An activation whose hand-written backward pass survives torch.export to the last bit: its value plus a zero with that gradient."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.inner = activation

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.inner.beta.detach().square() if self.inner.learned else self.inner.alpha
        assert alpha is not None
        if self.inner.activation == "relu_smooth_backward":
            carrier = x * torch.sigmoid(alpha * x).detach()
        else:
            u = (alpha * x.clamp_min(0)).detach()
            carrier = x / (1 + u) * u  # in this order its gradient rounds as (grad * u) / (1 + u)
        value: Tensor = self.inner(x).detach() + (carrier - carrier.detach())
        return value


def exportable(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU, in inference mode, with activations that export as they are."""
    clone = copy.deepcopy(model).cpu().eval()
    for module in list(clone.modules()):
        for name, child in module.named_children():
            if isinstance(child, Activation) and child.activation in _HAND_WRITTEN:
                setattr(module, name, _Traceable(child))
    return clone
