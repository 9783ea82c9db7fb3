"""A model's bfloat16 copy, to take gradients of: half the bytes, and on hardware that has it several times the rate.

Its logits are near the model's and never stand for them: what counts is said by the model itself, in float32 (`sat_ray.rescoring`).
"""

import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from sat_ray.activations import Activation

_WEIGHTY = (nn.Conv1d, nn.Conv2d, nn.Linear)


def pays(device: torch.device) -> bool:
    """Tell whether bfloat16 is faster than float32 there: a GPU that has it, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def bf16_copy(model: Callable[[Tensor], Tensor], *, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function [0, 1] float32 images (N, C, H, W) -> float32 logits (N, K) that computes in bfloat16 where autocast does.

    model: in inference mode on `device`; it is not touched. Of a module, BatchNorm is folded into the convolutions before it where the
    module can be traced, and the weights of convolutions and linear layers are rounded once; a plain function runs under autocast.
    """
    rounded = _rounded(model) if isinstance(model, nn.Module) else model

    def in_bf16(x: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return rounded(x).float()

    return in_bf16


def _rounded(model: nn.Module) -> nn.Module:
    copied = _folded(copy.deepcopy(model)).eval()
    for module in copied.modules():
        if isinstance(module, _WEIGHTY):
            module.to(torch.bfloat16)
    return copied.requires_grad_(False)


class _Tracer(fx.Tracer):
    """Trace through containers; an activation, whose backward pass may be its own, stays one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Activation) or super().is_leaf_module(m, module_qualified_name)


def _folded(model: nn.Module) -> nn.Module:
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        folded: nn.Module = fuse(traced, inplace=True, no_trace=True)
    except Exception as reason:  # a model that cannot be traced (data-dependent control flow) is slower, not wrong
        logging.getLogger(__name__).info("BatchNorm is not folded into %s: %s", type(model).__name__, reason)
        return model
    return folded
