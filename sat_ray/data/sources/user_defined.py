"""A user-defined dataset, `module:name`: a `Source`, or a function that returns the images.

The function returns (images, labels, class_names): images (N, C, H, W) uint8, labels (N,) whole
numbers, K names; or a `Raw`, which may say which images its test split has. It takes no argument,
or `path`, and is then given --data.path. Where no split is official, a tenth of the images is held
out for testing and a tenth for validation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sat_ray.data.class_names import doubled
from sat_ray.data.pixels import too_dark
from sat_ray.data.sources.base import (
    LayoutError,
    Listing,
    Raw,
    Source,
    UnusableImagesError,
)
from sat_ray.data.sources.npz import read_npz
from sat_ray.storage.s3_path import Folder
from sat_ray.utils.import_string import call, parameters, required, resolve

FEWEST = 20
NPZ_LAYOUT = (
    "an .npz file of images (N, C, H, W) or (N, H, W, C) uint8 and labels (N,), perhaps with "
    "class_names (K,); a tenth each is held out by hash for testing and validation"
)
RETURNED = "images (N, C, H, W) uint8, labels (N,), class_names"
ALLOWED = f"a Source, or a function without arguments (or with path) that returns {RETURNED}"


@functools.cache
def user_defined_source(name: str) -> Source:
    """Import a dataset of the user's own; its images are read when they are needed.

    ValueError in one line.
    """
    what = f"data.dataset {name}"
    found = resolve(name, what="data.dataset")
    if isinstance(found, Source):
        return dataclasses.replace(found, name=name)
    if not callable(found):
        raise ValueError(f"{what} must be {ALLOWED}, got a {type(found).__name__}")
    takes = parameters(found, what=what)
    if unknown := [one for one in required(takes) if one != "path"]:
        raise ValueError(f"{what} must be {ALLOWED}, got one that needs {', '.join(unknown)}")
    layout = f"a folder that {name} reads" if "path" in takes else ""
    about = (
        f"user-defined images from {name}; a tenth each for testing and validation where it names "
        "none"
    )
    return Source(
        name,
        functools.partial(_read, name),
        images=0,
        test=0,
        val=0,
        about=about,
        layout=layout,
        anonymous=bool(layout),
        optional_path=bool(layout) and "path" not in required(takes),
    )


def read_npz_file(path: Folder) -> Raw:
    """Read an .npz file to train on.

    It is read as for an evaluation, and checked like the result of a user's function.
    """
    if not isinstance(path, Path) or not path.is_file():
        raise LayoutError("it is no file on this machine")
    images, labels, _, names = read_npz(path)
    names = names or tuple(str(label) for label in range(int(labels.max()) + 1))
    return _checked(Raw(images, labels, names), what=f"data {path}")


def counted(source: Source, path: str = "") -> Source:
    """Return a source with its number of images, which is read where it is unknown.

    Images in files are not counted.
    """
    if source.images or source.encoded or source.needs(path):
        return source
    found = opened(source, path)
    splits = source.splits(found)
    return dataclasses.replace(
        source, images=len(found.labels), test=len(splits["test"]), val=len(splits["val"])
    )


@functools.lru_cache(maxsize=1)
def opened(source: Source, path: str = "") -> Raw | Listing:
    """Read a dataset, or list its images, once per process."""
    return source.open(path)


def _read(name: str, path: Any = None) -> Raw:
    what = f"data.dataset {name}"
    try:
        found = call(
            resolve(name, what="data.dataset"),
            **({} if path is None else {"path": path}),
            what=what,
        )
    except LayoutError as error:
        raise ValueError(str(error)) from None
    try:
        return _checked(found if isinstance(found, Raw) else _raw(found, what=what), what=what)
    except ValueError as error:
        raise UnusableImagesError(str(error)) from None


def _raw(found: Any, *, what: str) -> Raw:
    if not isinstance(found, tuple) or len(found) != 3:
        raise ValueError(
            f"{what} must return {RETURNED}, as a tuple or a Raw, got a {type(found).__name__}"
        )
    images, labels, names = found
    if (
        not isinstance(names, Sequence)
        or isinstance(names, str)
        or not all(isinstance(one, str) for one in names)
    ):
        raise ValueError(
            f"{what}: class_names must be one text per class, in the order of the labels, "
            f"got a {type(names).__name__}"
        )
    return Raw(np.asarray(images), np.asarray(labels), tuple(names))


def _checked(raw: Raw, *, what: str) -> Raw:
    _check_images(raw.images, what=what)
    labels = raw.labels
    count = len(raw.images)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{what}: labels must be {count} whole numbers, one per image, "
            f"got {labels.dtype} {labels.shape}"
        )
    if len(raw.class_names) < 2 or doubled(raw.class_names):
        raise ValueError(
            f"{what}: class_names must be at least 2, each once, got {raw.class_names}"
        )
    if labels.min() < 0 or labels.max() >= len(raw.class_names):
        raise ValueError(
            f"{what}: labels must lie in 0 to {len(raw.class_names) - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )
    if absent := sorted(set(range(len(raw.class_names))) - set(labels.tolist())):
        raise ValueError(
            f"{what}: images must include every class, got none with the label {absent[0]} "
            f"({raw.class_names[absent[0]]})"
        )
    for split, ids in raw.held_out.items():
        if (
            split not in ("test", "val")
            or len(set(ids.tolist())) != len(ids)
            or not np.isin(ids, np.arange(count)).all()
        ):
            raise ValueError(
                f"{what}: held_out must be of test and val, image ids from 0 to {count - 1}, each "
                f"once, got other ones for {split}"
            )
    return dataclasses.replace(
        raw, images=np.ascontiguousarray(raw.images), labels=labels.astype(np.int64)
    )


def _check_images(images: Any, *, what: str) -> None:
    """Refuse what is no uint8 image, and name the likely mistake."""
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        raise ValueError(
            f"{what}: images must have shape (N, C, H, W), C = 1 for gray ones, "
            f"got {getattr(images, 'shape', None)}"
        )
    if images.dtype != np.uint8:
        scaled = images.dtype.kind == "f" and float(images.min()) >= 0 and float(images.max()) <= 1
        hint = "; write np.rint(images * 255).astype(np.uint8)" if scaled else ""
        raise ValueError(
            f"{what}: images must be uint8 pixels as they were before any scaling, "
            f"got {images.dtype}{hint}"
        )
    if images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        raise ValueError(
            f"{what}: images must have shape (N, C, H, W), got {images.shape}, channels last; "
            "return images.transpose(0, 3, 1, 2)"
        )
    if len(images) < FEWEST:
        raise ValueError(f"{what}: images must be at least {FEWEST}, got {len(images)}")
    if images.max() <= 1:
        raise ValueError(too_dark(images.max(), what=f"images of {what}"))
    if (images == images[:1]).all():
        raise ValueError(f"{what}: images must differ, got the same image every time")
