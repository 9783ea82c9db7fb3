"""Residual networks with activation before convolution, for images of about 32 pixels.

They are PreActResNet-18, WideResNet-28-10 and WideResNet-34-10.

    block    h = act1(bn1(x));  y = conv2(act2(bn2(conv1(h)))) + shortcut,
             shortcut = x, or a 1 x 1 convolution of h where shapes differ
    network  3 x 3 convolution, groups of blocks (every group but the first halves the image),
             act(bn(.)), mean over pixels, linear

He et al. 2016, "Identity Mappings in Deep Residual Networks"; Zagoruyko and Komodakis 2016, "Wide
Residual Networks" (no dropout).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sat_ray.models.architectures.convolutions import conv1x1, conv3x3


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions, each after BatchNorm and activation.

    x: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        self.conv1 = conv3x3(inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = (
            conv1x1(inputs, outputs, stride=stride) if stride != 1 or inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual plus the shortcut."""
        h = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(h)
        result: Tensor = self.conv2(self.act2(self.bn2(self.conv1(h)))) + shortcut
        return result


class PreActResNet(nn.Module):
    """A pre-activation network.

    stem: channels of the first convolution; widths: channels of each group; blocks: in each group.

    x: (N, in_channels, H, W) -> logits (N, num_classes).
    """

    def __init__(
        self, *, stem: int, widths: Sequence[int], blocks: int, num_classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, stem)
        groups = [
            nn.Sequential(
                *(
                    PreActBlock(
                        inputs if i == 0 else width, width, stride=2 if i == 0 and number else 1
                    )
                    for i in range(blocks)
                )
            )
            for number, (inputs, width) in enumerate(pairwise([stem, *widths]))
        ]
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.act = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised images to logits."""
        x = self.act(self.bn(self.groups(self.conv1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
