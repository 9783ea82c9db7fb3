"""Where images come from: one entry adds one dataset."""

import numpy as np

from sat_ray.data.sources import cifar, idx
from sat_ray.data.sources.base import EXTRA, EXTRA_PATH, PATH, LayoutError, Listing, Raw, Source
from sat_ray.data.sources.image_folder import IMAGE_FOLDER_LAYOUT, list_image_folder
from sat_ray.data.sources.imagenet import IMAGENET_LAYOUT, list_imagenet
from sat_ray.data.sources.user_defined import NPZ_LAYOUT, read_npz_file, user_defined_source
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import check_name

__all__ = ["DATASETS", "LayoutError", "Listing", "Raw", "Source", "dataset_source"]


IDX_VAL = 5_000  # of the 60,000 train images: a standard error of 0.6 points at 80 %


def _read_digits() -> Raw:
    from sklearn.datasets import load_digits  # heavy, and needed by this dataset alone

    bunch = load_digits()
    images = np.rint(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    return Raw(images, bunch.target.astype(np.int64), tuple(str(digit) for digit in range(10)))


_ENTRIES = (
    Source(
        "digits",
        _read_digits,
        images=1797,
        test=899,
        val=180,
        about="scikit-learn's 1,797 handwritten digits, 8 x 8, one channel",
        shape=(1, 8, 8),
        classes=10,
    ),
    Source(
        "fashion_mnist",
        idx.FASHION_MNIST.read,
        images=idx.TRAIN + idx.TEST,
        test=idx.TEST,
        val=IDX_VAL,
        about="Fashion-MNIST: 70,000 photographs of clothes of 10 classes, 28 x 28, one channel; "
        "the official test images are the test split",
        layout=idx.FASHION_MNIST.layout,
        remote=True,
        shape=(1, idx.SIDE, idx.SIDE),
        classes=idx.CLASSES,
        package="dataset-fashion-mnist",
        installed="/usr/share/datasets/fashion-mnist",
        downloader="FashionMNIST",
    ),
    Source(
        "mnist",
        idx.MNIST.read,
        images=idx.TRAIN + idx.TEST,
        test=idx.TEST,
        val=IDX_VAL,
        about="MNIST: 70,000 handwritten digits, 28 x 28, one channel; "
        "the official test images are the test split",
        layout=idx.MNIST.layout,
        remote=True,
        shape=(1, idx.SIDE, idx.SIDE),
        classes=idx.CLASSES,
        downloader="MNIST",
    ),
    Source(
        "cifar10",
        cifar.CIFAR10.read,
        images=60_000,
        test=10_000,
        val=1_000,
        about="CIFAR-10: 60,000 photographs of 10 classes, 32 x 32; "
        "the official test images are the test split",
        layout=cifar.CIFAR10.layout,
        downloader="CIFAR10",
        remote=True,
        shape=(3, cifar.SIDE, cifar.SIDE),
        classes=10,
    ),
    Source(
        "cifar100",
        cifar.CIFAR100.read,
        images=60_000,
        test=10_000,
        val=1_000,
        about="CIFAR-100: 60,000 photographs of 100 classes, 32 x 32; "
        "the official test images are the test split",
        layout=cifar.CIFAR100.layout,
        downloader="CIFAR100",
        remote=True,
        shape=(3, cifar.SIDE, cifar.SIDE),
        classes=100,
    ),
    Source(
        "imagenet",
        list_imagenet,
        images=1_331_167,
        test=50_000,
        val=10_000,
        about="ImageNet (ILSVRC 2012): 1,281,167 photographs to train on, 1,000 classes; "
        "the official validation images are the test split",
        layout=IMAGENET_LAYOUT,
        remote=True,
        encoded=True,
        classes=1000,
    ),
    Source(
        "image_folder",
        list_image_folder,
        images=0,
        test=0,
        val=0,
        about="a folder of images, one sub-folder per class; counted when it is prepared",
        layout=IMAGE_FOLDER_LAYOUT,
        remote=True,
        encoded=True,
        anonymous=True,
    ),
    Source(
        "npz",
        read_npz_file,
        images=0,
        test=0,
        val=0,
        about="images and labels of an .npz file; counted when it is read",
        layout=NPZ_LAYOUT,
        anonymous=True,
    ),
)
DATASETS: dict[str, Source] = {source.name: source for source in _ENTRIES}


def dataset_source(name: str, *, field: str = "data.dataset") -> Source:
    """Return a dataset by its name or, as module:name, from the user's code.

    field: setting that has the name. Raises ValueError that suggests the closest names.
    """
    if is_reference(name):
        return user_defined_source(name)
    if name.endswith(".npz"):
        path = EXTRA_PATH if field == EXTRA else PATH
        flags = f"--{field} npz --{path} {name}".replace("_", "-")
        raise ValueError(f"{field} must be the name of a dataset, got a file, {name}; give {flags}")
    return DATASETS[check_name(name, DATASETS, field=field)]
