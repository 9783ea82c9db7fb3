"""The two convolutions of residual networks for small images, without bias."""

from torch import nn


def conv1x1(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that mixes channels only."""
    return nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)


def conv3x3(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the size of the image at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
