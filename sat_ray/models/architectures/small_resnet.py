"""A three-block residual network for images of about 8 x 8 pixels."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1


class SmallResNet(nn.Module):
    """Stack a 3 x 3 stem and three BasicBlocks of width w, 2w, 4w; the last two halve the image.

    width: channels of the stem. x: (N, in_channels, H, W) -> logits (N, num_classes).
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = BasicBlock(width, width)
        self.layer2 = self._halving(width, 2 * width)
        self.layer3 = self._halving(2 * width, 4 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _halving(inputs: int, outputs: int) -> BasicBlock:
        shortcut = nn.Sequential(conv1x1(inputs, outputs, stride=2), nn.BatchNorm2d(outputs))
        return BasicBlock(inputs, outputs, stride=2, downsample=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map standardised images to logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
