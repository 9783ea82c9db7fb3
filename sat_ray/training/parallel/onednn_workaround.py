"""Weight gradients of bf16 training on a CPU, where an image is smaller than a kernel needs.

Part of the kernel then meets nothing but padding, and the weights there have the gradient 0. In
bf16 oneDNN's kernels for AVX512 do not write that 0: the memory keeps what it held before, NaN
included (torch 2.14.1; for example one pixel under a kernel of 3 x 3 with stride 2). So the 0 is
written here. Everything else that these kernels compute is right. So are float32 and other devices.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class KernelReach:
    """Keep the gradients of weights that no pixel reaches at 0.

    model: what is trained; through: a view of it in inference mode, called once per image size to
    see how large the images are at every convolution.
    """

    def __init__(
        self, model: nn.Module, through: nn.Module, *, precision: str, device: torch.device
    ) -> None:
        self.model = model
        self.through = through
        self.needed = precision == "bf16" and device.type == "cpu"
        self.shape: Sequence[int] | None = None
        self.handles: list[RemovableHandle] = []

    def at(self, shape: Sequence[int]) -> None:
        """Prepare for training images of this shape, (C, H, W)."""
        if not self.needed or shape == self.shape:
            return
        self.shape = shape
        while self.handles:
            self.handles.pop().remove()
        for name, weights in unreached(self.through, shape).items():
            parameter = self.model.get_parameter(f"{name}.weight")
            hook = parameter.register_hook(
                lambda gradient, weights=weights: gradient.masked_fill(weights, 0.0)
            )  # type: ignore[no-untyped-call]
            self.handles.append(hook)


@torch.no_grad()
def unreached(model: nn.Module, shape: Sequence[int]) -> dict[str, Tensor]:
    """Return the weights that no pixel reaches, by the name of their convolution.

    Each value is (kernel height, kernel width) bool; convolutions without such weights are left
    out.
    """
    found: dict[str, Tensor] = {}

    def look(conv: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        height, width = given[0].shape[2:]
        rows = torch.tensor(list(_reached(conv, 0, height)))
        columns = torch.tensor(list(_reached(conv, 1, width)))
        weights = ~(rows[:, None] & columns[None, :])
        name = names[conv]
        found[name] = weights & found.get(name, weights)  # called twice: reached in either call

    names = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    handles = [module.register_forward_pre_hook(look) for module in names]
    try:
        model(torch.zeros(1, *shape, dtype=torch.float32))
    finally:
        for handle in handles:
            handle.remove()
    return {name: weights for name, weights in found.items() if bool(weights.any())}


def _reached(conv: nn.Conv2d, axis: int, size: int) -> Iterator[bool]:
    """Return for each place of the kernel along an axis whether it ever meets a pixel.

    size: pixels of the input along the axis.
    """
    kernel = conv.kernel_size[axis]
    stride = conv.stride[axis]
    dilation = conv.dilation[axis]
    before, after = _padding(conv, axis)
    starts = range(-before, size + after - dilation * (kernel - 1), stride)
    return (
        any(0 <= start + place * dilation < size for start in starts) for place in range(kernel)
    )


def _padding(conv: nn.Conv2d, axis: int) -> tuple[int, int]:
    """Return the pixels of padding before and after the image along an axis."""
    if isinstance(conv.padding, str):
        both = conv.dilation[axis] * (conv.kernel_size[axis] - 1) if conv.padding == "same" else 0
        return both // 2, both - both // 2
    return conv.padding[axis], conv.padding[axis]
