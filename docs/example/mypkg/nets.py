"""A network of my own."""

from collections.abc import Callable

from torch import nn


# --8<-- [start:net]
def net(
    num_classes: int, activation: Callable[[], nn.Module], in_channels: int = 3, width: int = 8
) -> nn.Module:
    """Stack three convolutions; `activation()` makes one new activation module per layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        activation(),
        nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        activation(),
        nn.Conv2d(2 * width, 4 * width, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4 * width),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


# --8<-- [end:net]
