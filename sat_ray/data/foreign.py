"""Images that others prepared, an image folder or an .npz file: written once as checksummed shards, then read like any dataset."""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sat_ray.data.folders import SUFFIXES, is_loose
from sat_ray.data.images import LARGEST_SIDE, fitted
from sat_ray.data.npz import read_npz
from sat_ray.data.shards import MANIFEST, SCHEMA_VERSION, verify, write_test_split
from sat_ray.reference import first_line
from sat_ray.storage import Storage

Block = tuple[np.ndarray, np.ndarray, np.ndarray]
ROWS_PER_SHARD = 256
CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}  # of PIL's 8-bit modes, as they are read here
ALLOWED = "a prepared dataset (a folder with manifest.json), an image folder (one sub-folder per class) or an .npz file"


@dataclass(frozen=True, kw_only=True)
class ForeignImages:
    """Images on this machine, checked but not yet decoded.

    fingerprint: sha256 of all that determines the pixels, labels and ids; shape: (C, H, W); class_names: () where the file has none;
    blocks: yields (images (N, C, H, W) uint8, labels (N,) int64, ids (N,) int64), and raises ValueError naming files that are damaged.
    """

    name: str
    fingerprint: str
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    blocks: Callable[[], Iterator[Block]]


def prepared(uri: str, root: Storage, *, image_size: int | None = None) -> str:
    """Return the folder of the prepared dataset that `uri` is or becomes.

    uri: a prepared dataset (local or s3://), an image folder, or an .npz; the last two are written below `root`, once for the same
    content. image_size: resize an image folder's short sides to it and crop the centre. Raises ValueError in one line.
    """
    path = Path(uri.removeprefix("file://")).expanduser()
    is_prepared = uri.startswith("s3://") or (path / MANIFEST).is_file()
    if image_size is not None and (is_prepared or not path.is_dir()):
        raise ValueError(f"image_size is {image_size}, but {uri} is no image folder; allowed: none, its images are taken as they are")
    if is_prepared:
        folder = Storage.at(uri)
        if not folder.exists(MANIFEST):
            raise ValueError(f"data {uri} has no {MANIFEST}; allowed: {ALLOWED} (the last two on a local disk)")
    elif path.is_file() and path.suffix == ".npz":
        folder = _written(open_npz(path), root)
    elif path.is_dir():
        folder = _written(open_image_folder(path, image_size=image_size), root)
    else:
        raise ValueError(f"data {uri} is {'no such kind of file' if path.exists() else 'not there'}; allowed: {ALLOWED}")
    verify(folder)
    return folder.uri


def _written(found: ForeignImages, root: Storage) -> Storage:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", found.name).strip(".-")[:40] or "images"
    content = hashlib.sha256(f"{SCHEMA_VERSION} {found.fingerprint}".encode()).hexdigest()
    storage = root.child(f"data/{slug}-{content[:16]}")
    if not storage.exists(MANIFEST):
        write_test_split(found.blocks(), storage, name=slug, shape=found.shape, class_names=found.class_names)
    return storage


def open_npz(path: Path) -> ForeignImages:
    """Read an .npz as `read_npz` does, with the file's bytes as its fingerprint. Raises ValueError."""
    images, labels, ids, names = read_npz(path)

    def blocks() -> Iterator[Block]:
        for first in range(0, len(images), ROWS_PER_SHARD):
            rows = slice(first, first + ROWS_PER_SHARD)
            yield images[rows], labels[rows], ids[rows]

    with open(path, "rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    return ForeignImages(name=path.stem, fingerprint=fingerprint, shape=images.shape[1:], class_names=names, blocks=blocks)


def open_image_folder(folder: Path, *, image_size: int | None = None) -> ForeignImages:
    """Find the PNG and JPEG files of an image folder: one sub-folder per class, classes and files in the order of their names.

    Gray images stay gray where all are; otherwise all are read as RGB. Sizes must agree unless image_size (1 to LARGEST_SIDE) is given.
    The image id is the place in that order. Raises ValueError listing what cannot be used; a file whose pixels are damaged is found when
    they are decoded.
    """
    if image_size is not None and not 1 <= image_size <= LARGEST_SIDE:
        raise ValueError(f"image_size is {image_size}; allowed: a whole number from 1 to {LARGEST_SIDE}")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [(path, label) for label, name in enumerate(classes) for path in _files_of(folder / name)]
    if not files:
        raise ValueError(f"data {folder} has no images in sub-folders; allowed: {ALLOWED}")
    _refuse_loose(folder)
    with ThreadPoolExecutor() as pool:
        looked = list(zip((path for path, _ in files), pool.map(_header, (path for path, _ in files)), strict=True))
    _refuse([(path, header) for path, header in looked if isinstance(header, str)], len(files))
    headers = [(path, header) for path, header in looked if not isinstance(header, str)]
    digest = hashlib.sha256(f"{image_size} {classes}".encode())
    for path, (_, _, content) in headers:
        digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    size = _common_size([(path, size) for path, (_, size, _) in headers], image_size)
    channels = max(CHANNELS[mode] for _, (mode, _, _) in headers)
    return ForeignImages(
        name=folder.resolve().name,
        fingerprint=digest.hexdigest(),
        shape=(channels, *size),
        class_names=tuple(classes),
        blocks=lambda: _decoded(files, channels=channels, image_size=image_size),
    )


def _refuse_loose(folder: Path) -> None:
    """Refuse images beside the class folders: they have no class, and leaving them out would go unnoticed."""
    loose = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and is_loose(entry.name))
    if loose:
        raise ValueError(f"data {folder} has images beside its class folders ({len(loose)}, {loose[0]} first); allowed: {ALLOWED}")


def _files_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    other = [path for path in found if path.is_dir() or path.suffix.lower() not in SUFFIXES]
    _refuse([(path, f"not {', '.join(SUFFIXES)}") for path in other], len(found))
    return found


def _refuse(bad: Sequence[tuple[Path, str]], count: int) -> None:
    if bad:
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"{len(bad)} of {count} files cannot be used: {shown}{more}; allowed: 8-bit PNG and JPEG images")


def _header(path: Path) -> tuple[str, tuple[int, int], str] | str:
    """Return (mode, (width, height), sha256) of an image file, or why it is none."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            mode, size = image.mode, image.size
    except Exception as error:
        return _reason(error)
    if mode not in CHANNELS:
        return f"its pixels are of PIL mode {mode}, not 8-bit gray or colour"
    return mode, size, hashlib.sha256(data).hexdigest()


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "not an image" if isinstance(error, UnidentifiedImageError) else first_line(error)


def _common_size(sizes: Sequence[tuple[Path, tuple[int, int]]], image_size: int | None) -> tuple[int, int]:
    if image_size is not None:
        return image_size, image_size
    first, (width, height) = sizes[0]
    for path, size in sizes:
        if size != (width, height):
            raise ValueError(f"images differ in size: {first} is {width} x {height}, {path} is {size[0]} x {size[1]}; give --image-size N")
    return height, width


def _decoded(files: Sequence[tuple[Path, int]], *, channels: int, image_size: int | None) -> Iterator[Block]:
    bad: list[tuple[Path, str]] = []
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(files), ROWS_PER_SHARD):
            part = files[first : first + ROWS_PER_SHARD]
            pixels = list(pool.map(lambda file: _pixels(file[0], channels=channels, image_size=image_size), part))
            bad += [(path, found) for (path, _), found in zip(part, pixels, strict=True) if isinstance(found, str)]
            if not bad:  # after a damaged file only the other damaged ones are looked for
                labels = np.array([label for _, label in part], dtype=np.int64)
                yield np.stack(pixels), labels, np.arange(first, first + len(part))
    _refuse(bad, len(files))


def _pixels(path: Path, *, channels: int, image_size: int | None) -> Any:
    """Return one image (C, H, W) uint8, or why its file cannot be decoded."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image: Any = file.convert("L" if channels == 1 else "RGB")
    except Exception as error:
        return _reason(error)
    if image_size is not None:
        image = fitted(image, image_size)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
