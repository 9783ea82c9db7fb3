"""Memory layout of convolutions: channels last is 10 to 20 % faster, where it is safe."""

import torch
from torch import nn

SAFE_CHANNELS = 8


def memory_format(model: nn.Module) -> torch.memory_format:
    """Return the layout to use for a model on its device.

    On the CPU, convolutions of 2 to 7 input channels stay in the plain layout: with torch 2.14.1
    the channels-last weight gradient of a strided 1 x 1 convolution of 4 channels writes outside
    its buffer.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    narrow = any(
        isinstance(module, nn.Conv2d) and 3 < module.in_channels < SAFE_CHANNELS
        for module in model.modules()
    )
    return torch.contiguous_format if on_cpu and narrow else torch.channels_last


def settle_layout(model: nn.Module) -> torch.memory_format:
    """Put a model into its layout in place, and return it. Views must be made after this."""
    chosen = memory_format(model)
    model.to(memory_format=chosen)
    return chosen
