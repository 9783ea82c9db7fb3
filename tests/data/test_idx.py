"""The reader of MNIST and Fashion-MNIST: small files, plain and gzipped,
and every way to be wrong.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from archives import idx, idx_files, opened, unpack, zipped
from torchvision.datasets import FashionMNIST

from sat_ray.data.sources import idx as reader
from sat_ray.data.sources.registry import DATASETS, LayoutError, Raw

NAMES = ("fashion_mnist", "mnist")
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
INSTALLED = Path(DATASETS["fashion_mnist"].installed)


PACKED: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "plain": dict,
    "gzipped": zipped,
    "half of them gzipped": lambda files: (
        {name: data for name, data in files.items() if "images" in name}
        | zipped({name: data for name, data in files.items() if "labels" in name})
    ),
    "unpacked by a browser that kept the names": lambda files: {
        f"{name}.gz": data for name, data in files.items()
    },
    "as torchvision keeps them": lambda files: {
        f"FashionMNIST/raw/{name}": data for name, data in files.items()
    },
}


@pytest.mark.parametrize("packed", PACKED)
def test_the_files_are_read_in_the_official_order_however_they_are_packed(
    packed: str, tmp_path: Path
) -> None:
    files, images, labels = idx_files()
    found = opened("fashion_mnist", unpack(PACKED[packed](files), tmp_path))
    assert np.array_equal(found.images, images[:, None]) and found.images.dtype == np.uint8
    assert np.array_equal(found.labels, labels) and found.labels.dtype == np.int64
    assert found.held_out["test"].tolist() == list(range(36, 42))
    assert found.class_names == tuple(FashionMNIST.classes)


def test_torchvisions_reader_finds_the_same_images_in_the_same_files(tmp_path: Path) -> None:
    files, *_ = idx_files()
    unpack(PACKED["as torchvision keeps them"](files), tmp_path)
    ours = opened("fashion_mnist", tmp_path)
    for train, rows in ((True, slice(0, 36)), (False, slice(36, None))):
        theirs = FashionMNIST(tmp_path, train=train)
        assert np.array_equal(theirs.data.numpy(), ours.images[rows, 0])
        assert theirs.targets.tolist() == ours.labels[rows].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_test_split_is_the_official_one_and_5_000_train_images_are_held_out(name: str) -> None:
    labels = np.zeros(70_000, dtype=np.int64)
    splits = DATASETS[name].splits(Raw(labels, labels, (), {"test": np.arange(60_000, 70_000)}))
    sizes = {split: len(ids) for split, ids in splits.items()}
    assert sizes == {"test": 10_000, "val": 5_000, "train": 55_000}
    assert splits["test"].tolist() == list(range(60_000, 70_000))
    both = np.sort(np.concatenate([splits["train"], splits["val"]]))
    assert both.tolist() == list(range(60_000))
    first = min(range(60_000), key=lambda i: hashlib.sha256(f"{name}:{i}".encode()).digest())
    assert first in splits["val"]


def of_the_other_split(name: str) -> str:
    """Return the name of the file with the same kind of content in the other split."""
    split, rest = name.split("-", 1)
    return f"{'t10k' if split == 'train' else 'train'}-{rest}"


def changed(**by_role: bytes) -> dict[str, bytes]:
    """Return the small files, some of them replaced."""
    names = {
        "images": IMAGES,
        "labels": LABELS,
        "test_images": TEST_IMAGES,
        "test_labels": TEST_LABELS,
    }
    return idx_files()[0] | {names[role]: data for role, data in by_role.items()}


def without(*names: str) -> dict[str, bytes]:
    """Return the small files without some."""
    return {name: data for name, data in idx_files()[0].items() if name not in names}


SMALL = idx_files()[0]
OTHER = idx_files(train=20, test=8)[0]
HUGE = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 28, 28)
DAMAGED: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({}, "it holds none of the files"),
    "a file is missing": (without(TEST_LABELS), f"it lacks {TEST_LABELS} (or the same with .gz)"),
    "an empty file": (changed(images=b""), f"{IMAGES} is cut off: it has 0 bytes"),
    "cut inside the header": (
        changed(images=SMALL[IMAGES][:10]),
        f"{IMAGES} is cut off: it ends after 10 bytes, inside its header",
    ),
    "cut inside the images": (
        changed(images=SMALL[IMAGES][:-1]),
        f"{IMAGES} is cut off: it has 28,223 bytes of images, and its header announces 28,224",
    ),
    "one byte too many": (
        changed(labels=SMALL[LABELS] + b"\0"),
        f"{LABELS} has bytes behind the 36 that its header announces",
    ),
    "an HTML page": (
        changed(images=b"<!DOCTYPE html><html>not found</html>"),
        f"{IMAGES} is no IDX file of images: it must begin with 00000803, got 3c21444f",
    ),
    "elements of 32 bits": (
        changed(labels=b"\0\0\x0c\x01" + SMALL[LABELS][4:]),
        f"{LABELS} is no IDX file of labels: it must begin with 00000801, got 00000c01",
    ),
    "labels in the place of images": (
        changed(images=SMALL[LABELS]),
        f"{IMAGES} holds labels, not images: the two are swapped",
    ),
    "images in the place of labels": (
        changed(test_labels=SMALL[TEST_IMAGES]),
        f"{TEST_LABELS} holds images, not labels: the two are swapped",
    ),
    "train and test swapped": (
        {of_the_other_split(name): data for name, data in SMALL.items()},
        "the t10k files hold 36 images and the train files 6: train and test are swapped",
    ),
    "test labels of the train images": (
        changed(labels=SMALL[TEST_LABELS]),
        f"{IMAGES} has 36 images and {LABELS} 6 labels: they do not belong together",
    ),
    "test images of another set": (
        changed(test_images=OTHER[TEST_IMAGES]),
        f"{TEST_IMAGES} has 8 images and {TEST_LABELS} 6 labels: they do not belong together",
    ),
    "a label of 10": (
        changed(labels=idx(np.full(36, 10, dtype=np.uint8))),
        f"{LABELS} has a label of 10; the labels are 0 to 9",
    ),
    "no images": (
        changed(images=idx(np.zeros((0, 28, 28), np.uint8))),
        f"{IMAGES} must announce 1 to 1,000,000 x 28 x 28 bytes, got 0 x 28 x 28",
    ),
    "images of another size": (
        changed(images=idx(np.zeros((36, 32, 32), np.uint8))),
        f"{IMAGES} must announce 1 to 1,000,000 x 28 x 28 bytes, got 36 x 32 x 32",
    ),
    "a header that announces four billion images": (
        changed(images=HUGE),
        f"{IMAGES} must announce 1 to 1,000,000 x 28 x 28 bytes, got 4294967295 x 28 x 28",
    ),
}
CUT_GZIP = {
    "half a gzip": lambda data: gzip.compress(data)[:-2000],
    "a gzip whose checksum is wrong": lambda data: gzip.compress(data)[:-8] + bytes(8),
    "a gzip with a flipped bit": lambda data: (
        gzip.compress(data)[:5000] + b"\xff\xff" + gzip.compress(data)[5002:]
    ),
}


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_or_mixed_up_files_are_refused_in_one_line_that_names_the_file(
    damage: str, gz: bool, tmp_path: Path
) -> None:
    files, message = DAMAGED[damage]
    if gz:
        files = zipped(files)
        for name in SMALL:
            message = message.replace(f"{name} ", f"{name}.gz ")
        message = message.replace(".gz (or the same", " (or the same")
    with pytest.raises(LayoutError) as caught:
        opened("mnist", unpack(files, tmp_path))
    line = str(caught.value)
    assert line.startswith(f"data.path {tmp_path}: {message}")
    assert "for mnist give a folder with train-images-idx3-ubyte" in line and "\n" not in line


@pytest.mark.parametrize("cut", CUT_GZIP)
def test_a_damaged_gzip_is_refused_in_one_line(cut: str, tmp_path: Path) -> None:
    files = zipped(SMALL) | {f"{IMAGES}.gz": CUT_GZIP[cut](SMALL[IMAGES])}
    with pytest.raises(LayoutError, match=rf"{IMAGES}\.gz (is damaged \(|is cut off)") as caught:
        opened("mnist", unpack(files, tmp_path))
    assert "\n" not in str(caught.value)


def test_a_gzip_is_not_unpacked_beyond_what_its_header_announces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[int]()
    bomb = zipped(SMALL | {LABELS: SMALL[LABELS] + bytes(50_000_000)})

    class Counting(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(reader.gzip, "GzipFile", Counting)
    with pytest.raises(LayoutError, match=f"{LABELS}.gz has bytes behind the 36"):
        opened("mnist", unpack(bomb, tmp_path))
    assert 0 < sum(read) < 100_000


def test_files_of_the_official_size_must_have_the_official_content(tmp_path: Path) -> None:
    labels = idx(np.zeros(10_000, np.uint8))
    message = "has 10,000 labels, but not those of mnist: the md5 of its content is [0-9a-f]{32}"
    with pytest.raises(LayoutError, match=f"{TEST_LABELS} {message}"):
        opened("mnist", unpack(SMALL | {TEST_LABELS: labels}, tmp_path))


def test_files_that_are_no_regular_files_are_not_opened(tmp_path: Path) -> None:
    unpack(without(LABELS, TEST_LABELS), tmp_path)
    os.mkfifo(tmp_path / LABELS)
    (tmp_path / TEST_LABELS).symlink_to("/dev/zero")
    with pytest.raises(LayoutError, match=f"it lacks {LABELS}, {TEST_LABELS}"):
        opened("mnist", tmp_path)


def test_the_way_to_get_the_images_is_said_where_none_are_found(tmp_path: Path) -> None:
    absent = dataclasses.replace(DATASETS["fashion_mnist"], installed=str(tmp_path / "nowhere"))
    for path in ("", str(tmp_path)):
        with pytest.raises(LayoutError, match=r"data\.path") as caught:
            absent.open(path)
        line = str(caught.value)
        assert "for fashion_mnist give a folder with train-images-idx3-ubyte" in line
        assert "or install Debian's package (apt-get install dataset-fashion-mnist)" in line
        assert "or give --data.download" in line and "\n" not in line
    present = dataclasses.replace(absent, installed=str(unpack(zipped(SMALL), tmp_path / "there")))
    assert len(present.open("").labels) == 42


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_installed_fashion_mnist_is_read_and_refused_as_mnist(tmp_path: Path) -> None:
    found = DATASETS["fashion_mnist"].open()
    assert isinstance(found, Raw) and found.images.shape == (70_000, 1, 28, 28)
    assert np.bincount(found.labels).tolist() == [7_000] * 10
    assert found.images[:60_000].mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    with pytest.raises(
        LayoutError, match=rf"holds {IMAGES} of fashion_mnist, not {IMAGES} of mnist"
    ):
        opened("mnist", INSTALLED)
    swapped = {name: of_the_other_split(name) for name in SMALL}
    for name, other in swapped.items():
        (tmp_path / f"{name}.gz").symlink_to(INSTALLED / f"{other}.gz")
    with pytest.raises(LayoutError, match=rf"{IMAGES}\.gz holds {TEST_IMAGES} of fashion_mnist"):
        opened("fashion_mnist", tmp_path)


def test_an_array_of_any_content_survives_the_way_through_a_file() -> None:
    draw = np.random.default_rng(3)
    for count in (1, 2, 255, 256, 257):
        images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        found, digest = reader.read_idx(io.BytesIO(idx(images)), axes=3)
        assert np.array_equal(found, images)
        assert digest == hashlib.md5(idx(images)).hexdigest()
