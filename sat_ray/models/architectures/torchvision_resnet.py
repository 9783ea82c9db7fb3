"""torchvision's residual networks, with one activation module for each call.

torchvision's blocks call one shared ReLU two or three times; a learned alpha is one per layer, so
the blocks are given separate activation modules. Parameters, their names and their initial values
stay as torchvision made them.
"""

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sat_ray.models.architectures.convolutions import conv3x3
from sat_ray.models.architectures.small_resnet import ResidualBlock
from sat_ray.models.spec import RESNEXTS, ModelSpec


class SplitBottleneck(Bottleneck):
    """A Bottleneck whose three activations are separate modules."""

    act1: nn.Module
    act2: nn.Module
    act3: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return act3(residual(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.act3(out + shortcut)
        return result


_SPLIT: dict[type[nn.Module], tuple[type[nn.Module], int]] = {
    BasicBlock: (ResidualBlock, 2),
    Bottleneck: (SplitBottleneck, 3),
}


def separate_activations(net: nn.Module) -> None:
    """Give each residual block of torchvision a module of its own for each activation."""
    for block in list(net.modules()):
        if type(block) in _SPLIT:
            split, count = _SPLIT[type(block)]
            block.__class__ = split  # same state, same initial weights; only forward differs
            del block.relu
            for index in range(1, count + 1):
                setattr(block, f"act{index}", nn.ReLU())


def _small_stem(net: nn.Module, *, in_channels: int) -> None:
    net.conv1 = conv3x3(in_channels, 64)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()


def residual_net(spec: ModelSpec) -> nn.Module:
    """Build the ResNet or ResNeXt that a spec names."""
    options = {"num_classes": spec.num_classes, "zero_init_residual": spec.zero_gamma}
    if spec.name in RESNEXTS:
        blocks, groups, width = RESNEXTS[spec.name]
        net: nn.Module = ResNet(
            Bottleneck, list(blocks), groups=groups, width_per_group=width, **options
        )
    else:
        net = get_model(spec.name, weights=None, **options)
    if spec.stem == "small":
        _small_stem(net, in_channels=spec.in_channels)
    elif spec.in_channels != 3:
        net.conv1 = nn.Conv2d(spec.in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    separate_activations(net)
    return net
