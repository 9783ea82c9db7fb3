"""A network in inference mode with BatchNorm folded into the convolutions before it.

It is for passes that compute gradients at the images.

    scale   = gamma / sqrt(variance + eps)
    weight' = scale * weight
    bias'   = beta + scale * (bias - mean)

On a GPU some convolutions take another form with the same sums: those of one pixel are matrix
products, whose bias costs nothing, and a first layer of stride 2 sees the image as blocks of 2 x 2
pixels, four times the channels, since three of them leave tensor cores idle.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sat_ray.activations.module import Activation

WEIGHTY = (nn.Conv1d, nn.Conv2d, nn.Linear)
FEW_CHANNELS = 4


class FoldedConv(nn.Module):
    """A convolution and the BatchNorm behind it as one convolution.

    follows: `refresh` takes over what they have become since.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, dtype: torch.dtype | None, follows: bool
    ) -> None:
        super().__init__()
        self.geometry: dict[str, Any] = {
            name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")
        }
        # in a tuple, so that they are no parts of this module
        self.sources: tuple[nn.Conv2d, nn.BatchNorm2d] | tuple[()] = (conv, norm)
        weight = conv.weight.detach()
        self.weight = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(weight.new_empty(len(weight), dtype=dtype), requires_grad=False)
        self.refresh()
        if not follows:
            self.sources = ()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold anew, in place."""
        if not self.sources:
            return
        conv, norm = self.sources
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        middle = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        self.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
        self.bias.copy_(-middle * scale if norm.bias is None else norm.bias - middle * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        if x.is_cuda and self._is_product():
            return as_product(x, self.weight, self.bias)
        if x.is_cuda:  # torch.compile adds a bias of its own in the activation behind it
            found = self._convolve(x)
            return found + self.bias.view(-1, 1, 1).to(found.dtype)
        return F.conv2d(x, self.weight, self.bias, **self.geometry)

    def _convolve(self, x: Tensor) -> Tensor:
        if self._sees_blocks(x):
            return on_blocks(x.to(self.weight.dtype), self.weight)
        return F.conv2d(x, self.weight, **self.geometry)

    def _is_product(self) -> bool:
        return self.weight.shape[2:] == (1, 1) and self.geometry == {
            "stride": (1, 1),
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
        }

    def _sees_blocks(self, x: Tensor) -> bool:
        _, channels, height, width = self.weight.shape
        expected = {
            "stride": (2, 2),
            "padding": (height // 2,) * 2,
            "dilation": (1, 1),
            "groups": 1,
        }
        odd_square = height == width and height % 2 == 1
        return (
            odd_square
            and channels <= FEW_CHANNELS
            and self.geometry == expected
            and x.shape[2] % 2 == x.shape[3] % 2 == 0
        )

    def extra_repr(self) -> str:
        """Show what identifies a convolution: modules that look the same share compiled kernels."""
        return ", ".join(
            [
                f"weight={tuple(self.weight.shape)}",
                *(f"{name}={value}" for name, value in self.geometry.items()),
            ]
        )


def as_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (N, C, H, W) with a kernel of one pixel, (O, C, 1, 1), as a product over channels.

    Channels-last images are not copied.
    """
    return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)


def on_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve images with stride 2, as blocks of 2 x 2 pixels with stride 1.

    x: (N, C, H, W) of even sides; the padding is k // 2, for a kernel of k x k, k odd.

    A kernel's places become those of blocks; where it begins or ends in the middle of a block,
    weights of 0 fill that up.
    """
    images, channels, height, width = x.shape
    side = weight.shape[2]
    before = (side // 2) % 2
    blocks = (side + before + 1) // 2
    filled = F.pad(weight, 2 * (before, 2 * blocks - side - before))
    kernel = (
        filled.reshape(len(weight), channels, blocks, 2, blocks, 2)
        .permute(0, 3, 5, 1, 2, 4)
        .reshape(-1, 4 * channels, blocks, blocks)
    )
    pixels = (
        x.permute(0, 2, 3, 1)
        .reshape(images, height // 2, 2, width // 2, 2, channels)
        .permute(0, 1, 3, 2, 4, 5)
    )
    left = (side // 2 + 1) // 2
    around = F.pad(
        pixels.reshape(images, height // 2, width // 2, 4 * channels).permute(0, 3, 1, 2),
        2 * (left, blocks - 1 - left),
    )
    return F.conv2d(around, kernel.contiguous(memory_format=torch.channels_last))


def folded(
    model: nn.Module, *, dtype: torch.dtype | None = None, follows: bool = False
) -> nn.Module:
    """Return the model with every BatchNorm that follows a convolution folded into it.

    model: in inference mode; everything else is shared with it. dtype: of the folded weights, None
    for the model's. follows: `refresh` may be called after the model has changed. A model that
    cannot be traced, has hooks, or calls a layer twice is returned itself.
    """
    modules = list(model.modules())
    # hooks would be lost, with what they compute
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    if hooks or not any(isinstance(module, nn.BatchNorm2d) for module in modules):
        return model
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    # a model that cannot be traced (data-dependent control flow) is slower, not wrong
    except Exception as reason:
        logging.getLogger(__name__).info(
            "BatchNorm is not folded into %s: %s", type(model).__name__, reason
        )
        return model
    if _calls_twice(traced):
        return model
    named = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        pair = _pair(node, named)
        if pair is not None:
            before = node.args[0]
            traced.set_submodule(before.target, FoldedConv(*pair, dtype=dtype, follows=follows))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def refresh(model: nn.Module) -> None:
    """Fold anew what a training has changed since."""
    for module in model.modules():
        if isinstance(module, FoldedConv):
            module.refresh()


class _Tracer(fx.Tracer):
    """Trace through containers; an activation, whose backward pass may differ, stays one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Activation) or super().is_leaf_module(m, module_qualified_name)


def _pair(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """Return the convolution and the BatchNorm of a node; None for any other node.

    The BatchNorm must be all that uses the convolution's output.
    """
    norm = modules[str(node.target)] if node.op == "call_module" else None
    before = node.args[0] if isinstance(norm, nn.BatchNorm2d) and node.args else None
    if (
        not isinstance(norm, nn.BatchNorm2d)
        or not isinstance(before, fx.Node)
        or before.op != "call_module"
        or len(before.users) > 1
    ):
        return None
    conv = modules[str(before.target)]
    if (
        type(conv) is not nn.Conv2d
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
        or norm.running_mean is None
    ):
        return None
    return conv, norm


def _calls_twice(traced: fx.GraphModule) -> bool:
    """Say whether a layer with weights is called in more than one place."""
    modules = dict(traced.named_modules())
    called = [modules[str(node.target)] for node in traced.graph.nodes if node.op == "call_module"]
    weighty = [id(module) for module in called if isinstance(module, (*WEIGHTY, nn.BatchNorm2d))]
    return len(set(weighty)) < len(weighty)
