"""The built-in networks with their own kinds of layers and few of them,
for tests that run all of them.
"""

from typing import Any

import pytest
from torch import Tensor
from torchvision.models.resnet import ResNet

from sat_ray.models.architectures.sizes import PREACT, SCALES


def thin_networks(patch: pytest.MonkeyPatch) -> None:
    """Let residual networks have one block in twelve and one group in four, EfficientNets an eighth
    of width and depth.

    Pre-activation networks have an eighth of the width and one block in a group.
    """
    whole = ResNet.__init__

    def thinner(
        self: ResNet, block: Any, layers: list[int], groups: int = 1, **options: Any
    ) -> None:
        whole(self, block, [-(-count // 12) for count in layers], groups=-(-groups // 4), **options)

    patch.setattr(ResNet, "__init__", thinner)
    for name, (width, depth, pixels) in SCALES.items():
        patch.setitem(SCALES, name, (width / 8, depth / 8, pixels))
    for name, (stem, widths, _) in PREACT.items():
        patch.setitem(PREACT, name, (stem, tuple(width // 8 for width in widths), 1))


def without_draws(patch: pytest.MonkeyPatch) -> None:
    """Let all weights begin with one number, where drawing them takes the time."""
    for name in ("normal_", "uniform_"):
        patch.setattr(Tensor, name, lambda tensor, *_, **__: tensor.fill_(0.01))
