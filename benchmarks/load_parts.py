"""The dataset and the network of load.py: shifted digits and a tiny network."""

from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from sat_ray.data.sources.base import Raw

TRAIN, VAL = 256, 64
SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]


def _digits(test: int) -> Raw:
    """Return TRAIN + VAL + `test` images of 8 x 8 pixels, the test images last."""
    bundle, count = load_digits(), TRAIN + VAL + test
    images = np.rint(bundle.images * 255 / 16).astype(np.uint8)[:, None]
    shifted = np.concatenate(
        [np.roll(images, shift, axis=(2, 3)) for shift in SHIFTS[: -(-count // len(images))]]
    )
    labels = np.resize(bundle.target, count)
    ids = np.arange(count)
    return Raw(
        shifted[:count],
        labels,
        tuple("0123456789"),
        {"val": ids[TRAIN : TRAIN + VAL], "test": ids[TRAIN + VAL :]},
    )


def test_64() -> Raw:
    """Return 64 test images."""
    return _digits(64)


def test_2000() -> Raw:
    """Return 2,000 test images."""
    return _digits(2000)


def test_20000() -> Raw:
    """Return 20,000 test images."""
    return _digits(20_000)


def net(num_classes: int, activation: Callable[[], nn.Module], in_channels: int = 1) -> nn.Module:
    """Stack two linear layers with eight units between them."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64 * in_channels, 8), activation(), nn.Linear(8, num_classes)
    )
