"""MNIST and Fashion-MNIST from their four IDX files, each gzipped or not.

An IDX file, as http://yann.lecun.com/exdb/mnist/ describes it:

    magic     two zero bytes, the type of the elements (08: unsigned bytes), the number of axes
    sizes     of every axis, a big-endian 32-bit number each
    elements  the last axis fastest, and nothing behind them

The image id is the place in the official order: the train images, then the test images. Both data
sets have files of the same names, sizes and shapes, so their content is compared with the official
one wherever a file has the official number of images.
"""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np

from sat_ray.data.sources.base import LayoutError, Raw
from sat_ray.storage.s3_path import Folder

SIDE = 28
CLASSES = 10
TRAIN = 60_000
TEST = 10_000
MOST_IMAGES = 1_000_000  # in one file: 0.8 GB; a damaged header may say four billion
UNSIGNED_BYTES = 0x08
KINDS = {1: "labels", 3: "images"}  # by the number of axes
FILES = {  # by what they hold: split, number of axes, official number of elements of the first axis
    "train-images-idx3-ubyte": ("train", 3, TRAIN),
    "train-labels-idx1-ubyte": ("train", 1, TRAIN),
    "t10k-images-idx3-ubyte": ("test", 3, TEST),
    "t10k-labels-idx1-ubyte": ("test", 1, TEST),
}


@dataclass(frozen=True)
class Idx:
    """One of the data sets.

    folder: where torchvision's downloader puts its files, below the folder that it is given;
    md5: of the official files, by name, when they are not compressed.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]
    md5: Mapping[str, str]

    @property
    def layout(self) -> str:
        """Show what a folder may hold."""
        return f"a folder with {', '.join(FILES)}, each gzipped (.gz) or not"

    def read(self, path: Folder) -> Raw:
        """Read all images. Raises LayoutError naming the file that is missing or wrong."""
        found = _find(path, self.folder)
        if missing := [name for name in FILES if name not in found]:
            raise LayoutError(f"it lacks {', '.join(missing)} (or the same with .gz)")
        arrays = {}
        for name, file in found.items():
            try:
                arrays[name] = self._array(file, name)
            except ValueError as error:
                raise LayoutError(f"{file.name} {error}") from None
        train, test = (_joined(arrays, found, split) for split in ("train", "test"))
        if len(test[1]) > len(train[1]):
            raise LayoutError(
                f"the t10k files hold {len(test[1]):,} images and the train files "
                f"{len(train[1]):,}: train and test are swapped"
            )
        images, labels = (np.concatenate(parts) for parts in zip(train, test, strict=True))
        held_out = {"test": np.arange(len(train[1]), len(labels))}
        return Raw(images[:, None], labels.astype(np.int64), self.class_names, held_out=held_out)

    def _array(self, file: Folder, name: str) -> np.ndarray:
        """Return what a file holds; ValueError says what is wrong with it."""
        _, axes, official = FILES[name]
        array, digest = _read(file, axes=axes)
        holds = OFFICIAL.get(digest)
        if holds is not None and holds != (self.name, name):
            raise ValueError(f"holds {holds[1]} of {holds[0]}, not {name} of {self.name}")
        if len(array) == official and holds is None:
            raise ValueError(
                f"has {official:,} {KINDS[axes]}, but not those of {self.name}: the md5 of its "
                f"content is {digest}, the official one {self.md5[name]}"
            )
        if axes == 1 and int(array.max()) >= CLASSES:
            raise ValueError(f"has a label of {array.max()}; the labels are 0 to {CLASSES - 1}")
        return array


def _find(path: Folder, folder: str) -> dict[str, Folder]:
    """Return the files that are there, by name, from the first folder that has any of them."""
    if not path.is_dir():
        raise LayoutError("it is not a folder")
    for place in (path, path / folder / "raw"):
        found = {}
        for name in FILES:
            for file in (place / name, place / f"{name}.gz"):
                if name not in found and file.is_file():
                    found[name] = file
        if found:
            return found
    raise LayoutError("it holds none of the files of the data set")


def _joined(
    arrays: Mapping[str, np.ndarray], found: Mapping[str, Folder], split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of a split, which must be equally many."""
    images, labels = (name for name, (part, *_) in FILES.items() if part == split)
    counts = len(arrays[images]), len(arrays[labels])
    if counts[0] != counts[1]:
        raise LayoutError(
            f"{found[images].name} has {counts[0]:,} images and {found[labels].name} "
            f"{counts[1]:,} labels: they do not belong together"
        )
    return arrays[images], arrays[labels]


def _read(file: Folder, *, axes: int) -> tuple[np.ndarray, str]:
    """Read a file, gzipped or not, whatever its name says; return its array and the md5."""
    with ExitStack() as stack:
        stream = stack.enter_context(file.open("rb"))
        if stream.read(2) == b"\x1f\x8b":
            stream.seek(0)
            stream = cast(BinaryIO, stack.enter_context(gzip.GzipFile(fileobj=stream)))
        else:
            stream.seek(0)
        try:
            return read_idx(stream, axes=axes)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"is damaged ({error})") from None


def read_idx(stream: BinaryIO, *, axes: int) -> tuple[np.ndarray, str]:
    """Return the uint8 array of an IDX file, (N,) or (N, 28, 28), and the md5 of the file.

    axes: 1 for labels, 3 for images. Raises ValueError where the file is anything else; no more is
    read than the header announces, and the header may not announce more than MOST_IMAGES.
    """
    header = stream.read(4 + 4 * axes)
    _check_magic(header[:4], axes=axes)
    if len(header) < 4 + 4 * axes:
        raise ValueError(f"is cut off: it ends after {len(header)} bytes, inside its header")
    shape = tuple(np.frombuffer(header, dtype=">u4", offset=4).tolist())
    if not 1 <= shape[0] <= MOST_IMAGES or shape[1:] != (SIDE, SIDE)[: axes - 1]:
        allowed = f"1 to {MOST_IMAGES:,}{f' x {SIDE} x {SIDE}' if axes == 3 else ''}"
        raise ValueError(f"must announce {allowed} bytes, got {' x '.join(map(str, shape))}")
    expected = int(np.prod(shape))
    data = stream.read(expected)
    if len(data) < expected:
        raise ValueError(
            f"is cut off: it has {len(data):,} bytes of {KINDS[axes]}, and its header announces "
            f"{expected:,}"
        )
    if stream.read(1):
        raise ValueError(f"has bytes behind the {expected:,} that its header announces")
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(data)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape), digest.hexdigest()


def _check_magic(magic: bytes, *, axes: int) -> None:
    """Raise ValueError where a file does not begin as IDX files of bytes with these axes do."""
    wanted = bytes((0, 0, UNSIGNED_BYTES, axes))
    if magic == wanted:
        return
    if len(magic) < 4:
        raise ValueError(f"is cut off: it has {len(magic)} bytes")
    if magic[:3] == wanted[:3] and magic[3] in KINDS:
        raise ValueError(f"holds {KINDS[magic[3]]}, not {KINDS[axes]}: the two are swapped")
    raise ValueError(
        f"is no IDX file of {KINDS[axes]}: it must begin with {wanted.hex()}, got {magic.hex()}"
    )


FASHION_MNIST = Idx(
    name="fashion_mnist",
    folder="FashionMNIST",
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    md5={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
)
MNIST = Idx(
    name="mnist",
    folder="MNIST",
    class_names=tuple(str(digit) for digit in range(CLASSES)),
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
)
OFFICIAL = {
    digest: (one.name, name) for one in (FASHION_MNIST, MNIST) for name, digest in one.md5.items()
}
