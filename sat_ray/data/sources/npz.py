"""Arrays of an .npz file from elsewhere, each checked before it is used.

They are images and labels, and perhaps ids and class names.
"""

import contextlib
import os
import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from sat_ray.data.class_names import doubled
from sat_ray.data.pixels import too_dark
from sat_ray.utils.import_string import first_line

WANTED = ("images", "labels", "image_ids", "class_names")
NEEDED = ("images", "labels")
MEMORY_SHARE = 0.5  # of what is free: images with channels last are copied once
UNSUSPECTED = 1024**3  # bytes; only beyond these is it asked how well the images are packed
MOST_PACKING = 100  # bytes of images in one of the file; drawings take a twentieth of their pixels
MOST_LABEL = 2**31 - 1  # labels are stored as int32
# The format of an array without named fields; a header of a later one may be 4 GB long.
PLAIN_FORMAT = (1, 0)
INT64 = (-(2**63), 2**63 - 1)  # and image ids as int64


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read images and labels, and image ids and class names where the file has them.

    images: (N, C, H, W) or (N, H, W, C) uint8 with 1 or 3 channels; labels: (N,) whole numbers;
    image_ids: (N,) whole numbers, each once, else 0 to N - 1; class_names: (K,) strings.
    Returns images (N, C, H, W) uint8, labels and ids (N,) int64, and the names, () where the file
    has none. Raises ValueError in one line.
    """
    arrays = _arrays(path)
    images = _channels_first(arrays["images"], path)
    if (brightest := int(images.max())) <= 1:
        raise ValueError(too_dark(brightest, what=f"images of {path}"))
    names = _class_names(arrays.get("class_names"), path)
    labels = _labels(arrays["labels"], path, count=len(images), names=names)
    given = arrays.get("image_ids", np.arange(len(images)))
    ids = _whole_numbers(
        given,
        "image_ids",
        path,
        count=len(images),
        limits=INT64,
        allowed=f"{INT64[0]} to {INT64[1]}",
    )
    if len(np.unique(ids)) != len(ids):
        doubled = [
            int(i)
            for i, count in zip(*np.unique(ids, return_counts=True), strict=True)
            if count > 1
        ]
        raise ValueError(
            f"image_ids of {path} must hold each id once, got {doubled[:5]} more than once"
        )
    return images, labels, ids, names


def shape_and_classes(path: Path) -> tuple[tuple[int, ...], int]:
    """Return (C, H, W) of the images of a file and its number of classes; no image is read.

    Raises ValueError in one line.
    """
    arrays = _arrays(path, outline=True)
    count = len(arrays["images"])
    images = _channels_first(arrays["images"][:1], path)
    names = _class_names(arrays.get("class_names"), path)
    labels = _labels(arrays["labels"], path, count=count, names=names)
    return images.shape[1:], len(names) or int(labels.max()) + 1


def _arrays(path: Path, *, outline: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays that are wanted; of anything else in the file only the names are read.

    outline: one zero stands for all pixels of the images, in their shape and type.
    """
    try:
        _check_announced(path)
        with np.load(path, allow_pickle=False) as file:
            names = list(file.files)
            read = [name for name in names if name in WANTED]
            if outline:
                read = [name for name in read if name != "images"]
            found = {name: file[name] for name in read}
        if outline and "images" in names:
            with zipfile.ZipFile(path) as archive:
                shape, kind = _header(archive, archive.getinfo("images.npy"))
            found["images"] = np.broadcast_to(np.zeros(1, kind), shape)
    except Exception as error:  # numpy, zip and zlib raise whatever damaged bytes lead them to
        raise ValueError(
            f"data {path} must be an .npz of plain arrays without objects, got another file "
            f"({first_line(error)})"
        ) from None
    if any(name not in found for name in NEEDED):
        raise ValueError(
            f"data {path} must hold {' and '.join(NEEDED)} (and may hold "
            f"{' and '.join(WANTED[2:])}), got {names}; rename the arrays, or add what is "
            "missing (data.extra takes pseudo-labels)"
        )
    return found


def _check_announced(path: Path) -> None:
    """Raise ValueError where the arrays' headers announce more bytes than can be there.

    That is more than their part of the file, than memory, or than images can be packed. What has no
    such header is refused too: numpy would read it whole, whatever its size.
    """
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as stream:
            alone = stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX
        raise ValueError(
            "it holds one array without a name, as np.save writes" if alone else "it is no zip file"
        )
    announced = 0
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            if member.filename.removesuffix(".npy") in WANTED:
                shape, kind = _header(file, member)
                size = prod(shape) * kind.itemsize
                if size > member.file_size:
                    raise ValueError(
                        f"{member.filename} announces {size:,} bytes and has {member.file_size:,}"
                    )
                announced += size
    packed = path.stat().st_size
    memory = free_memory()
    if announced > MEMORY_SHARE * memory:
        raise ValueError(
            f"its arrays announce {announced:,} bytes, and {memory:,} bytes of memory are free; "
            "split it into smaller files"
        )
    if announced > UNSUSPECTED and announced > MOST_PACKING * packed:
        raise ValueError(
            f"its arrays announce {announced:,} bytes in a file of {packed:,}, more than images "
            "can be packed"
        )


def _header(
    file: zipfile.ZipFile, member: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type in the header of an array; ValueError where it has none."""
    with file.open(member) as stream:
        start = stream.read(len(npy.MAGIC_PREFIX))
        version = tuple(stream.read(2))
        if start != npy.MAGIC_PREFIX:
            raise ValueError(f"{member.filename} is no array")
        if version != PLAIN_FORMAT:
            raise ValueError(f"{member.filename} has the header of an array with named fields")
        shape, _, kind = npy.read_array_header_1_0(stream)
    return shape, kind


def free_memory() -> int:
    """Return the bytes of memory that this process may still take.

    They are those of the machine or, where it is less, of its container.
    """
    found = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        (line,) = (one for one in lines if one.startswith("MemAvailable:"))
        found = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" where it has no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found = min(found, limit - int((group / "memory.current").read_text()))
    return found


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype != np.uint8:
        raise ValueError(
            f"images of {path} must be uint8 pixels, 0 to 255, got {images.dtype}; give the images "
            "as they were before any scaling: epsilon is measured in [0, 1] pixels, and normalised "
            "images would change what it means"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"images of {path} must have shape (N, C, H, W) or (N, H, W, C), none of them 0, "
            f"got {images.shape}"
        )
    first, last = (images.shape[axis] in (1, 3) for axis in (1, 3))
    if first == last:
        which = "both" if first else "neither"
        raise ValueError(
            f"images of {path} must have 1 or 3 channels on one of axes 1 and 3, got shape "
            f"{images.shape}: {which} can be channels"
        )
    return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _whole_numbers(
    values: np.ndarray, name: str, path: Path, *, count: int, limits: tuple[int, int], allowed: str
) -> np.ndarray:
    """Return (count,) whole numbers as int64; ValueError for other values.

    limits: the lowest and the highest number; allowed: the same in words.
    """
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"{name} of {path} must be ({count},) whole numbers, one per image, "
            f"got {values.shape} {values.dtype}"
        )
    if int(values.min()) < limits[0] or int(values.max()) > limits[1]:
        raise ValueError(
            f"{name} of {path} must lie in {allowed}, got {values.min()} to {values.max()}"
        )
    return values.astype(np.int64)


def _labels(values: np.ndarray, path: Path, *, count: int, names: tuple[str, ...]) -> np.ndarray:
    """Return (count,) labels as int64; ValueError for other values. names: of the classes."""
    most = len(names) - 1 if names else MOST_LABEL
    allowed = f"0 to {most}{', one of class_names' if names else ''}"
    limits = (0, most)
    return _whole_numbers(values, "labels", path, count=count, limits=limits, allowed=allowed)


def _class_names(values: np.ndarray | None, path: Path) -> tuple[str, ...]:
    if values is None:
        return ()
    if values.ndim != 1 or values.dtype.kind != "U" or doubled(values.tolist()):
        raise ValueError(
            f"class_names of {path} must be (K,) strings, one per class, all different, "
            f"got {values.shape} {values.dtype}"
        )
    return tuple(values.tolist())
