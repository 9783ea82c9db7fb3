"""A three-block residual network for images of about 8 x 8 pixels.

It is written without torchvision, which takes a second and 160 MB to import in each process.
"""

from torch import Tensor, nn

from sat_ray.models.architectures.convolutions import conv1x1, conv3x3


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each before BatchNorm and activation, around a shortcut.

    The names of the parameters are those of torchvision's BasicBlock.

    x: (N, inputs, H, W) -> (N, outputs, H / stride, W / stride).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        shortcut = None
        if stride != 1 or inputs != outputs:
            norm = nn.BatchNorm2d(outputs)
            shortcut = nn.Sequential(conv1x1(inputs, outputs, stride=stride), norm)
        self.conv1 = conv3x3(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut
        self.act1 = nn.ReLU()
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return act2(residual(x) + shortcut(x))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        result: Tensor = self.act2(self.bn2(self.conv2(out)) + shortcut)
        return result


class SmallResNet(nn.Module):
    """Stack a 3 x 3 stem and three blocks of width w, 2w, 4w; the last two halve the image.

    width: channels of the stem. x: (N, in_channels, H, W) -> logits (N, num_classes).
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = ResidualBlock(width, width)
        self.layer2 = ResidualBlock(width, 2 * width, stride=2)
        self.layer3 = ResidualBlock(2 * width, 4 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised images to logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
