"""EfficientNet B0 to B7 and L1, from torchvision's blocks.

The settings are those of the smooth-adversarial-training release.

Where this differs from torchvision's own models:
- BatchNorm has a decay of 0.9 (torch's momentum 0.1) and eps 1e-5 in all of them;
- L1 (width 3.9, depth 3.7, 600 pixels) exists;
- no dropout and no stochastic depth: their random numbers come from torch's global generator, so a
  resumed training, or one on another number of workers, would not be the same training. The release
  inherits both from EfficientNet (0.2 to 0.5, and 0.2).

Every SiLU becomes the injected activation, the one inside squeeze-and-excitation too: the official
code has a single `relu_fn` for the whole network and uses it there. The sigmoid of the gate stays,
as it does there: it weighs channels and rectifies nothing. Padding is torchvision's symmetric one,
not TensorFlow's "SAME"; parameters and shapes agree.
"""

from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

# expansion, kernel, stride, channels in, channels out, blocks: table 1 of Tan and Le 2019
_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
_MOMENTUM = 0.1
_EPS = 1e-5


def efficientnet(
    *, width: float, depth: float, num_classes: int, in_channels: int = 3, stem: str = "imagenet"
) -> EfficientNet:
    """Build an EfficientNet.

    width: factor on its channels; depth: on its blocks per stage.

    stem: "imagenet" halves the image in the first convolution, "small" does not. x: (N,
    in_channels, H, W) -> logits (N, num_classes).
    """
    stages = [MBConvConfig(*stage, width_mult=width, depth_mult=depth) for stage in _STAGES]
    net = EfficientNet(stages, dropout=0.0, stochastic_depth_prob=0.0, num_classes=num_classes)
    first = net.features[0][0]
    if in_channels != first.in_channels:
        net.features[0][0] = nn.Conv2d(
            in_channels, first.out_channels, kernel_size=3, stride=2, padding=1, bias=False
        )
        nn.init.kaiming_normal_(net.features[0][0].weight, mode="fan_out")
    if stem == "small":
        net.features[0][0].stride = (1, 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _MOMENTUM
            module.eps = _EPS
    return net


def zero_last_gammas(net: nn.Module) -> None:
    """Set the last BatchNorm of each block with a shortcut to 0.

    So the block starts as its shortcut.
    """
    for module in net.modules():
        if isinstance(module, MBConv) and module.use_res_connect:
            nn.init.zeros_(module.block[-1][1].weight)
