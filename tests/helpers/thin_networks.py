"""The built-in networks with their own kinds of layers and few of them,
for tests that run all of them.
"""

from typing import Any

import pytest
import timm
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from sat_ray.models.architectures.sizes import PREACT, SCALES

THIN_OPTIONS: dict[str, dict[str, Any]] = {  # of networks of timm
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "vit_small_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
}


def thin_networks(patch: pytest.MonkeyPatch) -> None:
    """Let residual networks have one block in twelve and one group in four, EfficientNets an eighth
    of width and depth.

    Pre-activation networks have an eighth of the width and one block in a group. For those of timm
    see THIN_OPTIONS.
    """
    created = timm.create_model

    def thinner_of_timm(name: str, **options: Any) -> nn.Module:
        return created(name, **options | THIN_OPTIONS.get(name, {}))

    patch.setattr(timm, "create_model", thinner_of_timm)
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
