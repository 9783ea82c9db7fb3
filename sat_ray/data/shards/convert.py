"""Images from elsewhere, an image folder or an .npz file, as a dataset for evaluation.

They are written once as checksummed shards, then read like any dataset.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from sat_ray.data.images import (
    LARGEST_SIDE,
    CorruptImageError,
    Header,
    Storing,
    header,
    opened,
)
from sat_ray.data.shards.dataset import write_test_split
from sat_ray.data.shards.manifest import MANIFEST, SCHEMA_VERSION
from sat_ray.data.shards.reading import verify
from sat_ray.data.sources.base import LayoutError, Place
from sat_ray.data.sources.image_folder import Found, class_files, split_folders
from sat_ray.data.sources.npz import read_npz
from sat_ray.storage.store import Storage
from sat_ray.utils.import_string import first_line
from sat_ray.utils.names import printable

Block = tuple[np.ndarray, np.ndarray, np.ndarray]
ROWS_PER_SHARD = 256
BLOCK_BYTES = 256 * 1024**2  # of decoded images in one shard: fewer of them where they are large
WORKERS = 4  # threads that read and decode
ALLOWED = (
    "a prepared dataset (a folder with manifest.json), an image folder (one sub-folder per class) "
    "or an .npz file"
)


@dataclass(frozen=True, kw_only=True)
class ExternalImages:
    """Images on this machine, checked but not yet decoded.

    fingerprint: sha256 of all that determines the pixels, labels and ids; shape: (C, H, W);
    count: of images; class_names: () where the file has none; blocks: yields (images (N, C, H, W)
    uint8, labels (N,) int64, ids (N,) int64), and raises ValueError naming files that are damaged.
    """

    name: str
    fingerprint: str
    shape: tuple[int, ...]
    count: int
    class_names: tuple[str, ...]
    blocks: Callable[[], Iterator[Block]]


def open_data(
    uri: str, *, image_size: int | None = None, resize: int = 0, channels: int | None = None
) -> Storage | ExternalImages:
    """Return the folder of a prepared dataset, or the images that `written` makes one of.

    uri: a prepared dataset (local or s3://), an image folder, or an .npz. image_size: resize an
    image folder's short sides to it and crop the centre; resize: to this instead, 0: to image_size;
    channels: read an image folder as gray (1) or RGB (3), as the model takes it, None for what the
    images are. Raises ValueError in one line.
    """
    path = Path(uri.removeprefix("file://")).expanduser()
    is_prepared = uri.startswith("s3://") or (path / MANIFEST).is_file()
    if image_size is not None and (is_prepared or not path.is_dir()):
        raise ValueError(
            f"image_size must be left out for {uri}, got {image_size}: only the images of an image "
            "folder are resized"
        )
    if is_prepared:
        folder = Storage.at(uri)
        if not folder.exists(MANIFEST):
            raise ValueError(
                f"data must be {ALLOWED} (the last two on a local disk), got {uri}, which has no "
                f"{MANIFEST}"
            )
        return folder
    if path.is_file() and path.suffix == ".npz":
        return open_npz(path)
    if path.is_dir():
        return open_image_folder(path, image_size=image_size, resize=resize, channels=channels)
    reason = "another kind of file" if path.exists() else "not there"
    raise ValueError(f"data must be {ALLOWED}, got {uri}, which is {reason}")


def written(found: Storage | ExternalImages, root: Storage) -> str:
    """Return the folder of a prepared dataset, whose shards are verified.

    Images that are none yet are written below `root`, once for the same content. Raises ValueError
    naming images that cannot be decoded, and leaves nothing of such data.
    """
    folder = found if isinstance(found, Storage) else _written(found, root)
    verify(folder)
    return folder.uri


def _written(found: ExternalImages, root: Storage) -> Storage:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", found.name).strip(".-")[:40] or "images"
    content = hashlib.sha256(f"{SCHEMA_VERSION} {found.fingerprint}".encode()).hexdigest()
    storage = root.child(f"data/{slug}-{content[:16]}")
    if not storage.exists(MANIFEST):
        try:
            write_test_split(
                found.blocks(), storage, name=slug, shape=found.shape, class_names=found.class_names
            )
        except ValueError:  # other data has another folder: nothing would use these shards
            storage.discard_folder("")
            raise
    return storage


def open_npz(path: Path) -> ExternalImages:
    """Read an .npz as `read_npz` does, with the file's bytes as its fingerprint.

    Raises ValueError.
    """
    images, labels, ids, names = read_npz(path)

    def blocks() -> Iterator[Block]:
        for first in range(0, len(images), ROWS_PER_SHARD):
            rows = slice(first, first + ROWS_PER_SHARD)
            yield images[rows], labels[rows], ids[rows]

    with open(path, "rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    return ExternalImages(
        name=path.stem,
        fingerprint=fingerprint,
        shape=images.shape[1:],
        count=len(images),
        class_names=names,
        blocks=blocks,
    )


def open_image_folder(
    folder: Path, *, image_size: int | None = None, resize: int = 0, channels: int | None = None
) -> ExternalImages:
    """Find the images of an image folder, in the order of torchvision's ImageFolder.

    Gray images stay gray where all are, otherwise all are read as RGB, unless channels, 1 or 3,
    says what the model takes. Sizes must agree unless image_size (1 to LARGEST_SIDE) is given;
    resize: see `prepared`. The image id is the place in that order. Raises ValueError listing what
    cannot be used; a file whose pixels are damaged is found when they are decoded.
    """
    if image_size is not None and not 1 <= image_size <= LARGEST_SIDE:
        raise ValueError(
            f"image_size must be a whole number from 1 to {LARGEST_SIDE}, got {image_size}"
        )
    files = _files(folder)
    with ThreadPoolExecutor(WORKERS) as pool:
        looked = list(pool.map(_looked_at, (place for _, place in files)))
    places = [place for _, place in files]
    _refuse(
        [
            (place, found)
            for place, found in zip(places, looked, strict=True)
            if isinstance(found, str)
        ],
        len(files),
    )
    headers = [found for found in looked if not isinstance(found, str)]
    classes = sorted({name for name, _ in files})
    stored_as = f"{image_size} {channels} {classes}" + (f" {resize}" if resize else "")
    digest = hashlib.sha256(stored_as.encode(errors="surrogateescape"))
    for place, (_, content) in zip(places, headers, strict=True):
        digest.update(f"{place.name} {content}\n".encode(errors="surrogateescape"))
    size = _common_size(places, [header for header, _ in headers], image_size)
    taken = channels or max(header.channels for header, _ in headers)
    labels = [classes.index(name) for name, _ in files]
    return ExternalImages(
        name=folder.resolve().name,
        fingerprint=digest.hexdigest(),
        shape=(taken, *size),
        count=len(places),
        class_names=tuple(classes),
        blocks=lambda: _decoded(
            places,
            labels,
            shape=(taken, *size),
            storing=Storing(image_size=image_size or 0, resize=resize),
        ),
    )


def _files(folder: Path) -> Found:
    """List an image folder as training does; a folder of splits is refused."""
    try:
        splits = split_folders(folder)
        if not splits:
            return _two_classes(class_files(folder))
    except LayoutError as error:
        raise ValueError(f"data must be {ALLOWED}, got {folder}: {error}") from None
    last = list(splits)[-1]
    raise ValueError(
        f"data {folder} has the splits {', '.join(splits)}; name one of them: {folder}/{last}"
    )


def _two_classes(found: Found) -> Found:
    """Return what was found; LayoutError where it is one class, as the folder above them looks."""
    if len(names := {name for name, _ in found}) < 2:
        raise LayoutError(
            f"it has one sub-folder with images, {printable(names.pop())}, and a classifier has "
            "two classes or more; name the folder that the class folders are in"
        )
    return found


def _refuse(bad: Sequence[tuple[Place, str]], count: int) -> None:
    if bad:
        shown = "; ".join(f"{printable(place.path)} ({reason})" for place, reason in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{len(bad)} of {count} files cannot be used: {shown}{more}; give images of 8 bits, "
            "one in a file"
        )


def _looked_at(place: Place) -> tuple[Header, str] | str:
    """Return the header and the sha256 of an image file, or why it is none."""
    try:
        data = place.read()
        return header(data), hashlib.sha256(data).hexdigest()
    except (CorruptImageError, OSError) as error:
        return printable(first_line(error))


def _common_size(
    places: Sequence[Place], headers: Sequence[Header], image_size: int | None
) -> tuple[int, int]:
    if image_size is not None:
        return image_size, image_size
    width, height = headers[0].size
    for place, found in zip(places, headers, strict=True):
        if found.size != (width, height):
            raise ValueError(
                f"images differ in size: {printable(places[0].path)} is {width} x {height}, "
                f"{printable(place.path)} is {found.size[0]} x {found.size[1]}; "
                "give --image-size N"
            )
    if max(width, height) > LARGEST_SIDE:
        raise ValueError(
            f"images must have sides of at most {LARGEST_SIDE} pixels, got {width} x {height}; "
            "give --image-size N"
        )
    return height, width


def _decoded(
    places: Sequence[Place],
    labels: Sequence[int],
    *,
    shape: tuple[int, ...],
    storing: Storing,
) -> Iterator[Block]:
    bad: list[tuple[Place, str]] = []
    rows = max(1, min(ROWS_PER_SHARD, BLOCK_BYTES // prod(shape)))
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, len(places), rows):
            part = places[first : first + rows]
            pixels = list(pool.map(lambda place: _pixels(place, storing, channels=shape[0]), part))
            bad += [
                (place, found)
                for place, found in zip(part, pixels, strict=True)
                if isinstance(found, str)
            ]
            if not bad:  # after a damaged file only the other damaged ones are looked for
                yield (
                    np.stack(pixels),
                    np.array(labels[first : first + rows], dtype=np.int64),
                    np.arange(first, first + len(part)),
                )
    _refuse(bad, len(places))


def _pixels(place: Place, storing: Storing, *, channels: int) -> Any:
    """Return one image (C, H, W) uint8, or why its file cannot be decoded."""
    try:
        return storing.pixels(opened(place.read(), channels=channels))
    except (CorruptImageError, OSError) as error:
        return printable(first_line(error))
