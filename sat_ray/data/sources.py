"""Where images come from: one entry adds one dataset."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sat_ray.names import check_name


@dataclass(frozen=True)
class Raw:
    """A dataset in its official order: images (N, C, H, W) uint8, labels (N,) int64, one name per class."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """How to read a dataset, how many images it has, and how many of them are held out for test and val."""

    name: str
    read: Callable[[], Raw]
    images: int
    test: int
    val: int
    about: str


def _read_digits() -> Raw:
    from sklearn.datasets import load_digits  # heavy, and needed by this dataset alone

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    return Raw(images, bunch.target.astype(np.int64), tuple(str(digit) for digit in range(10)))


DATASETS: dict[str, Source] = {
    "digits": Source(
        "digits", _read_digits, images=1797, test=899, val=180, about="scikit-learn's 1,797 handwritten digits, 8 x 8, one channel"
    ),
}


def dataset_source(name: str) -> Source:
    """Look a dataset up; ValueError suggests the closest names."""
    return DATASETS[check_name(name, DATASETS, field="data.dataset")]
