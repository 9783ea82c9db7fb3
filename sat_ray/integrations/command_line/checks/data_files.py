"""Whether images that a sweep must prepare are there and fit together, as far as a look shows.

What only reading every image shows is checked when they are prepared.
"""

from pathlib import Path

from sat_ray.data.class_names import check_extra_classes, check_extra_shape
from sat_ray.data.sources.base import EXTRA_PATH, PATH, Source
from sat_ray.data.sources.npz import shape_and_classes
from sat_ray.data.sources.registry import dataset_source
from sat_ray.storage.preflight import check_readable
from sat_ray.storage.s3_path import folder_at
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import SCHEME
from sat_ray.sweep.config import DataSettings, SweepConfig
from sat_ray.sweep.plan.datasets import data_uri
from sat_ray.sweep.tasks import Dataset

TEST_LIST = "data.test_list"


def check_data(config: SweepConfig, root: Storage) -> None:
    """Raise ValueError where images have to be prepared first and their place was not given.

    On this machine alone also where they, or the list of test images, are not there. The nodes of a
    cluster check that themselves.
    """
    from sat_ray.integrations.ray.session import is_private

    check_extra(config, root)
    for data, field in _to_prepare(config, root):
        source = _source(data)
        source.require_path(data.path, download=data.download, field=field)
        if is_private():
            check_readable(data.path, field=field)
            check_readable(data.test_list, field=TEST_LIST)
            source.require_there(data.path, download=data.download, field=field)
            data.test_images().require_readable()


def check_extra(config: SweepConfig, root: Storage) -> None:
    """Raise ValueError where extra images have another shape, or other classes, than the others.

    Both are compared as far as they are known before any image is read.
    """
    more = config.data.extra_data()
    if more is None:
        return
    shape, classes = _outline(config.data, root)
    extra_shape, extra_classes = _outline(more, root)
    own = config.data.dataset
    if shape is not None and extra_shape is not None:
        found = {"dataset": more.dataset, "shape": extra_shape}
        check_extra_shape(shape, found, own=own)
    if classes and extra_classes:
        check_extra_classes(classes, extra_classes, own=own, extra=more.dataset)


def checked_later(config: SweepConfig, root: Storage) -> str:
    """Return what a dry run could not check of the images; "" where all are prepared."""
    waiting = [(data, field) for data, field in _to_prepare(config, root) if _source(data).layout]
    if not waiting:
        return ""
    places = [(field, data.path) for data, field in waiting]
    places += [(TEST_LIST, data.test_list) for data, _ in waiting]
    missing = [
        f"{field} {path}"
        for field, path in places
        if path and not path.startswith(SCHEME) and not folder_at(path).exists()
    ]
    unnamed = [
        field for data, field in waiting if _source(data).needs(data.path, download=data.download)
    ]
    found = {
        "": ["what the images hold"],
        "whether the images have all names of ": [TEST_LIST] if config.data.test_list else [],
        "not given: ": unnamed,
        "not on this machine: ": missing,
    }
    return "; ".join(f"{word}{', '.join(names)}" for word, names in found.items() if names)


def _source(data: DataSettings) -> Source:
    return dataset_source(data.dataset)


def _to_prepare(config: SweepConfig, root: Storage) -> list[tuple[DataSettings, str]]:
    """Return the settings of what is not prepared yet, each with the setting of its path."""
    both = [(config.data, PATH), (config.data.extra_data(), EXTRA_PATH)]
    return [
        (data, field)
        for data, field in both
        if data is not None and Dataset.open(data_uri(data, root)) is None
    ]


def _outline(data: DataSettings, root: Storage) -> tuple[tuple[int, ...] | None, int]:
    """Return (C, H, W) and the number of classes of images; None and 0 where they are not known."""
    prepared = Dataset.open(data_uri(data, root))
    if prepared is not None:
        return tuple(prepared.manifest["shape"]), len(prepared.manifest["class_names"])
    source = _source(data)
    file = Path(data.path).expanduser()
    if source.name == "npz" and file.is_file():
        return shape_and_classes(file)
    return data.shape(), source.classes
