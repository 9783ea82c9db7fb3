"""Replace every ReLU and SiLU of a network by a registered activation, one module per call.

torchvision's residual blocks call one shared ReLU two or three times; a learned alpha is one per
layer, so the blocks are first taught to use separate activation modules. Parameters, their names
and their initial values stay as torchvision made them.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import make_activation


class SplitBasicBlock(BasicBlock):
    """A BasicBlock whose two activations are separate modules."""

    act1: nn.Module
    act2: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Return act2(residual(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.act2(out + shortcut)
        return result


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


REPLACED = (nn.ReLU, nn.SiLU)  # what residual networks and EfficientNets come with
_SPLIT: dict[type[nn.Module], tuple[type[nn.Module], int]] = {
    BasicBlock: (SplitBasicBlock, 2),
    Bottleneck: (SplitBottleneck, 3),
}


def _split_block(block: nn.Module) -> None:
    split, count = _SPLIT[type(block)]
    block.__class__ = split  # same state, same initial weights; only forward differs
    del block.relu
    for index in range(1, count + 1):
        setattr(block, f"act{index}", nn.ReLU())


def inject_activation(
    model: nn.Module,
    *,
    activation: str,
    alpha: float | None = None,
    replaced: tuple[type[nn.Module], ...] = REPLACED,
) -> int:
    """Replace every activation module of `model` in place.

    Returns how many activation modules it now has.

    replaced: the classes that are replaced. No random number is drawn. Raises ValueError on a bad
    activation, AssertionError if one survives or none was found.
    """
    for module in list(model.modules()):
        if type(module) in _SPLIT:
            _split_block(module)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, replaced):
                setattr(parent, name, make_activation(activation, alpha=alpha))
    made = [module for module in model.modules() if isinstance(module, Activation)]
    inside = {
        id(part) for module in made for part in module.modules()
    }  # a user-defined activation may use them
    left = [
        module
        for module in model.modules()
        if isinstance(module, replaced) and id(module) not in inside
    ]
    assert made and not left, "an activation was not replaced"
    return len(made)
