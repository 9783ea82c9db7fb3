"""The data and the network of the benchmarks.

Digits at 32 pixels (or any other size) in three channels, and ResNet-18 for small images at any
width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from sat_ray.data.sources.registry import Raw, dataset_source
from sat_ray.data.split import Split
from sat_ray.data.split_ids import split_by_hash
from sat_ray.models import ModelSpec, Normalized
from sat_ray.models.architectures.torchvision_resnet import separate_activations
from sat_ray.models.injection import inject_activation

PIXELS = 32
ACTIVATION = "silu"
MEAN, STD = (0.3,) * 3, (0.35,) * 3


class ScaledResNet18(ResNet):
    """torchvision's ResNet-18 with `width` channels in place of 64, and the stem for small
    images (3 x 3, stride 1, no pooling).
    """

    def __init__(self, *, width: int, num_classes: int) -> None:
        self.width = width
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * width, num_classes)

    def _make_layer(
        self, block: Any, planes: int, *arguments: Any, **keywords: Any
    ) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.width
        return super()._make_layer(block, planes * self.width // 64, *arguments, **keywords)


def scaled_resnet18(*, width: int) -> Normalized:
    """Build the network that is measured, [0, 1] pixels -> 10 logits, from the project's own
    parts. width: 64 for the usual one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = ScaledResNet18(width=width, num_classes=10)
    separate_activations(body)
    inject_activation(body, activation=ACTIVATION)
    spec = ModelSpec(name="resnet18", activation=ACTIVATION, stem="small", mean=MEAN, std=STD)
    return Normalized(body, mean=MEAN, std=STD, spec=spec)


def digits_enlarged(pixels: int = PIXELS) -> dict[str, Split]:
    """Return train, val and test of the digits, (N, 3, pixels, pixels) uint8,
    upsampled from 8 pixels.
    """
    return _split(upsampled(dataset_source("digits").read(), pixels=pixels))


def digits() -> dict[str, Split]:
    """Return train, val and test of the digits as they are, (N, 1, 8, 8) uint8."""
    return _split(dataset_source("digits").read())


def _split(raw: Raw) -> dict[str, Split]:
    source = dataset_source("digits")
    images, labels = torch.from_numpy(raw.images), torch.from_numpy(raw.labels)
    ids = split_by_hash(source.name, len(labels), test=source.test, val=source.val)
    return {
        name: Split(images[rows], labels[rows], torch.from_numpy(rows))
        for name, rows in ids.items()
    }


def upsampled(raw: Raw, *, pixels: int = PIXELS) -> Raw:
    """Enlarge grey images and give them three equal channels."""
    larger = (
        F.interpolate(torch.from_numpy(raw.images).float(), size=pixels, mode="bilinear")
        .round()
        .clamp(0, 255)
    )
    images = larger.to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return Raw(images.numpy(), raw.labels, raw.class_names)


def batch_of(split: Split, count: int) -> Split:
    """Repeat a split until it has `count` images, each with an id of its own."""
    rows = torch.arange(count) % len(split)
    return Split(split.images[rows], split.labels[rows], torch.arange(count))


def moved(split: Split, count: int) -> Split:
    """Repeat a split as `batch_of` does, every repetition moved by some more pixels."""
    again = batch_of(split, count)
    parts = [
        torch.roll(part, shifts=(turn, -2 * turn), dims=(2, 3))
        for turn, part in enumerate(again.images.split(len(split)))
    ]
    return Split(torch.cat(parts), again.labels, again.image_ids)
