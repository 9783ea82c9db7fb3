"""Readers of the official archives and of image folders,
on small ones that the tests write in the official formats.
"""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import (
    WORDNET_IDS,
    cifar,
    cifar_batch,
    devkit,
    idx_files,
    image_file,
    imagenet,
    opened,
    py2_array,
    py2_pickle,
    py2_string,
    tarred,
    unpack,
    zipped,
)
from torchvision.datasets import CIFAR10, CIFAR100

from sat_ray.data.images import Storing
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.manifest import manifest_hash
from sat_ray.data.sources import cifar as cifar_reader
from sat_ray.data.sources.cifar_pickle import UnsafePickleError, read_batch
from sat_ray.data.sources.registry import DATASETS, LayoutError, Listing, Raw, Source
from sat_ray.storage.store import Storage

ARCHIVES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
}


def listed(name: str, path: Path) -> Listing:
    """List a dataset's images."""
    found = DATASETS[name].open(str(path))
    assert isinstance(found, Listing)
    return found


# --- CIFAR ---


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("version", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("packed", ["archive", "folder", "its folder", "the archive itself"])
def test_cifar_is_read_in_the_official_order_however_it_is_packed(
    name: str, version: int, packed: str, tmp_path: Path
) -> None:
    *versions, rows, labels = cifar(name)
    files, archive = versions[version], tmp_path / ARCHIVES[name][version]
    if "archive" in packed:
        archive.write_bytes(tarred(files, mode="w:gz"))
    else:
        unpack(files, tmp_path)
    path = {"archive": tmp_path, "folder": tmp_path, "the archive itself": archive}.get(
        packed, tmp_path / next(iter(files)).split("/")[0]
    )
    found = opened(name, path)
    assert (
        np.array_equal(found.images, rows.reshape(-1, 3, 32, 32)) and found.images.dtype == np.uint8
    )
    assert np.array_equal(found.labels, labels) and found.labels.dtype == np.int64
    assert found.class_names == tuple(f"class {i}" for i in range(len(found.class_names)))
    assert found.held_out["test"].tolist() == list(range(len(rows) - 6, len(rows)))


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_torchvisions_reader_finds_the_same_images_in_the_same_archives(
    name: str, theirs: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        theirs, "_check_integrity", lambda self: True
    )  # its checksums are those of the full archives
    monkeypatch.setattr(theirs, "meta", theirs.meta | {"md5": None})
    unpack(cifar(name)[0], tmp_path)
    ours = opened(name, tmp_path)
    for train, rows in ((True, slice(0, -6)), (False, slice(-6, None))):
        dataset = theirs(tmp_path, train=train)
        assert np.array_equal(dataset.data.transpose(0, 3, 1, 2), ours.images[rows])
        assert (
            dataset.targets == ours.labels[rows].tolist()
            and tuple(dataset.classes) == ours.class_names
        )


def test_cifars_splits_are_the_official_test_images_and_a_fixed_fiftieth_of_train() -> None:
    source, labels = DATASETS["cifar10"], np.zeros(60_000, dtype=np.int64)
    splits = source.splits(Raw(labels, labels, (), held_out={"test": np.arange(50_000, 60_000)}))
    assert {split: len(ids) for split, ids in splits.items()} == {
        "test": 10_000,
        "val": 1_000,
        "train": 49_000,
    }
    assert splits["test"].tolist() == list(range(50_000, 60_000))
    assert sorted(np.concatenate([splits["train"], splits["val"]]).tolist()) == list(range(50_000))
    first = min(range(50_000), key=lambda one: hashlib.sha256(f"cifar10:{one}".encode()).digest())
    assert first in splits["val"]
    assert (
        hashlib.sha256(splits["val"].tobytes()).hexdigest()[:16] == "d990ca30c8e877a8"
    )  # fixed for ever


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("a batch is missing", "cifar-10-batches-py lacks data_batch_3"),
        ("a pickle is cut", "data_batch_3 is not a batch of CIFAR-10: it is damaged"),
        (
            "a label is out of range",
            "data_batch_3 is not a batch of CIFAR-10: labels are not in 0 to 9",
        ),
        ("an image is missing", "data_batch_3 is not a batch of CIFAR-10: it has no 'data' of"),
        ("a class is missing", "batches.meta names 1 classes, not 10"),
        ("nothing is there", "it holds neither version"),
        ("no folder", "it is not there"),
    ],
)
def test_a_folder_that_is_not_cifars_is_refused_in_one_line_that_shows_the_layout(
    damage: str, message: str, tmp_path: Path
) -> None:
    python, _, rows, labels = cifar("cifar10")
    third = "cifar-10-batches-py/data_batch_3"
    changed = {
        "a pickle is cut": {third: python[third][:-100]},
        "a label is out of range": {third: cifar_batch(rows[:6], labels[:6] + 10, fine=False)},
        "an image is missing": {third: cifar_batch(rows[:5], labels[:6], fine=False)},
        "a class is missing": {
            "cifar-10-batches-py/batches.meta": py2_pickle(
                {b"label_names": b"](" + py2_string(b"cat") + b"e"}
            )
        },
    }
    files = {} if damage == "nothing is there" else python | changed.get(damage, {})
    unpack(
        {
            name: data
            for name, data in files.items()
            if (damage, name) != ("a batch is missing", third)
        },
        tmp_path,
    )
    with pytest.raises(LayoutError, match=message) as caught:
        opened("cifar10", tmp_path / "nowhere" if damage == "no folder" else tmp_path)
    line = str(caught.value)
    assert (
        line.startswith("data.path ")
        and "for cifar10 give the official archive, or a folder with cifar-10-python.tar.gz" in line
    )
    assert "\n" not in line


@pytest.mark.parametrize("length", [3072, 3073 * 2 + 1])
def test_a_binary_batch_of_another_length_is_refused(length: int, tmp_path: Path) -> None:
    _, binary, *_ = cifar("cifar10")
    unpack(binary | {"cifar-10-batches-bin/test_batch.bin": bytes(length)}, tmp_path)
    with pytest.raises(
        LayoutError,
        match=(
            rf"test_batch\.bin is not a batch of CIFAR-10: its {length} bytes are no multiple of "
            r"3073"
        ),
    ):
        opened("cifar10", tmp_path)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    whole = tarred(cifar("cifar10")[0], mode="w:gz")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LayoutError, match=r"cifar-10-python\.tar\.gz is damaged"):
        opened("cifar10", tmp_path)


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_a_file_larger_than_any_of_the_family_is_not_read(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar_reader, "MOST_BYTES", 10_000)
    files = cifar("cifar10", per_batch=2)[0]
    files["cifar-10-batches-py/data_batch_2"] += bytes(10_000)
    if packed:
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(tarred(files, mode="w:gz"))
    else:
        unpack(files, tmp_path)
    with pytest.raises(
        LayoutError, match=r"data_batch_2 .*(must have at most|has more than) [0-9,]+ bytes"
    ):
        opened("cifar10", tmp_path)


# --- pickles that nobody should load ---


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


HOSTILE = {
    "touch a file": lambda target: pickle.dumps({"data": Runs(Path.touch, target)}, protocol=2),
    "run a command": lambda target: pickle.dumps(
        {"data": Runs(os.system, f"touch {target}")}, protocol=2
    ),
    "evaluate text": lambda target: pickle.dumps(
        Runs(eval, f"open({str(target)!r}, 'w')"), protocol=4
    ),
    "open a file": lambda target: pickle.dumps(Runs(open, str(target), "w"), protocol=0),
    "by the oldest opcode": lambda target: (
        b"(S'touch " + str(target).encode() + b"'\nios\nsystem\n."
    ),
    "behind numpy's name": lambda target: (
        b"\x80\x02}(U\x04datacnumpy\nload\n" + py2_string(str(target).encode()) + b"\x85Ru."
    ),
    "by an attribute": lambda target: b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.data\x93.",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_batch_is_refused_by_the_name_it_asks_for_and_never_run(
    attack: str, tmp_path: Path
) -> None:
    target, python = tmp_path / "run", cifar("cifar10")[0]
    data = HOSTILE[attack](target)
    with pytest.raises(UnsafePickleError, match=r"it names [\w.]+, which no CIFAR batch needs"):
        read_batch(data)
    unpack(python | {"cifar-10-batches-py/data_batch_1": data}, tmp_path)
    with pytest.raises(LayoutError, match=r"data_batch_1 is not a batch of CIFAR-10: it names"):
        opened("cifar10", tmp_path)
    assert not target.exists()
    if attack in ("touch a file", "run a command"):
        pickle.loads(data)
        assert target.exists(), "the attack itself must work, or refusing it proves nothing"


def test_a_batch_without_arrays_of_uint8_is_refused() -> None:
    array = py2_array(np.zeros((2, 3), dtype=np.uint8))
    for broken in (
        array.replace(b"U\x02u1", b"U\x02O8"),
        array.replace(b"K\x02K\x03\x86", b"K\x09K\x03\x86"),
        array[:-40] + b"b",
    ):
        with pytest.raises(UnsafePickleError):
            read_batch(py2_pickle({b"data": broken}))
    with pytest.raises(UnsafePickleError, match="holds a list and not a dictionary"):
        read_batch(b"\x80\x02].")
    fortran = array.replace(b"\x89" + py2_string(bytes(6)), b"\x88" + py2_string(bytes(range(6))))
    assert read_batch(py2_pickle({b"data": fortran}))["data"].tolist() == [[0, 2, 4], [1, 3, 5]]


# --- ImageNet ---


def contents(found: Listing) -> list[tuple[str, int, bytes]]:
    """Return name, label and bytes of every image."""
    return [
        (place.name, int(label), place.read())
        for place, label in zip(found.images, found.labels, strict=True)
    ]


def test_imagenets_folders_and_tar_files_list_the_same_images_in_the_same_order(
    tmp_path: Path,
) -> None:
    folders, tars = imagenet()
    one = listed("imagenet", unpack(folders, tmp_path / "folders"))
    other = listed("imagenet", unpack(tars, tmp_path / "tars"))
    assert contents(one) == contents(other)
    assert one.class_names == other.class_names == WORDNET_IDS
    assert one.held_out["test"].tolist() == other.held_out["test"].tolist() == list(range(24, 33))
    assert [name for name, _, _ in contents(one)[24:]] == [
        f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 10)
    ]
    assert {data for _, _, data in contents(one)} == set(folders.values())
    assert one.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [0, 1, 2] * 3


def test_imagenets_halves_may_be_packed_differently_and_the_truth_may_be_a_text_file(
    tmp_path: Path,
) -> None:
    folders, tars = imagenet()
    unpack({name: data for name, data in folders.items() if name.startswith("train/")}, tmp_path)
    unpack({"ILSVRC2012_img_val.tar": tars["ILSVRC2012_img_val.tar"]}, tmp_path)
    with pytest.raises(
        LayoutError,
        match=r"ILSVRC2012_img_val\.tar needs ILSVRC2012_devkit_t12\.tar\.gz or imagenet_2012",
    ):
        listed("imagenet", tmp_path)
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(WORDNET_IDS * 3))
    assert contents(listed("imagenet", tmp_path)) == contents(
        listed("imagenet", unpack(folders, tmp_path / "folders"))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ILSVRC2012_devkit_t12.tar.gz": devkit([WORDNET_IDS[0]] * 8)},
            "has 9 images and its ground truth 8 lines",
        ),
        (
            {"ILSVRC2012_devkit_t12.tar.gz": tarred({"readme": b""}, mode="w:gz")},
            "does not give the classes",
        ),
        ({"ILSVRC2012_img_train.tar": b"x" * 2000}, r"ILSVRC2012_img_train\.tar is damaged"),
        ({"ILSVRC2012_img_train.tar": tarred({"a.txt": b"x"})}, "holds no tar files of classes"),
        (
            {"ILSVRC2012_img_train.tar": None},
            r"it has neither train/ nor ILSVRC2012_img_train\.tar",
        ),
        (
            {"imagenet_2012_validation_synset_labels.txt": b"n99999999 " * 9},
            "classes that train has not: n99999999",
        ),
    ],
)
def test_an_imagenet_that_is_incomplete_is_refused_by_what_is_wrong(
    change: dict[str, bytes | None], message: str, tmp_path: Path
) -> None:
    files = {name: data for name, data in (imagenet()[1] | change).items() if data is not None}
    with pytest.raises(LayoutError, match=message) as caught:
        listed("imagenet", unpack(files, tmp_path))
    assert "for imagenet give a folder with train/WNID/*.JPEG or ILSVRC2012_img_train.tar" in str(
        caught.value
    )


# --- any folder ---


def folder(*names: str) -> dict[str, bytes]:
    """Return one file for each name."""
    return {name: image_file(i) for i, name in enumerate(names)}


def test_a_plain_image_folder_is_split_by_hash_a_tenth_each(tmp_path: Path) -> None:
    names = [f"{label}/{i:02d}.png" for label in ("cat", "dog") for i in range(20)]
    found = listed("image_folder", unpack(folder(*names, ".hidden/x.png"), tmp_path))
    assert [place.name for place in found.images] == names and found.class_names == ("cat", "dog")
    splits = DATASETS["image_folder"].splits(found)
    assert {split: len(ids) for split, ids in splits.items()} == {"test": 4, "val": 4, "train": 32}
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(40))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            ("train", "val"),
            {"train": 9, "val": 1, "test": 4},
        ),  # as ImageNet is spoken of: val/ is what is reported
        (("train", "test"), {"train": 9, "val": 1, "test": 4}),
        (("train", "val", "test"), {"train": 10, "val": 4, "test": 4}),
    ],
)
def test_the_folders_of_an_image_folder_are_its_splits(
    parts: tuple[str, ...], expected: dict[str, int], tmp_path: Path
) -> None:
    counts = {"train": 5, "val": 2, "test": 2}
    names = [
        f"{part}/{label}/{i}.jpg" for part in parts for label in "ab" for i in range(counts[part])
    ]
    found = listed("image_folder", unpack(folder(*names), tmp_path))
    splits = DATASETS["image_folder"].splits(found)
    assert {split: len(ids) for split, ids in splits.items()} == expected
    last = parts[-1]
    assert {found.images[i].name.split("/")[0] for i in splits["test"]} == {last}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("readme.txt",), "has no files in sub-folders"),
        (("a/1.jpg", "a/2.jpg"), "it has 1 class, and a classifier needs two"),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"),
            "test/ has classes that train/ has not: c",
        ),
        (
            ("a/1.jpg", "b/1.jpg", "3.PNG", "2.jpg"),
            r"has images beside its folders \(2, 2\.jpg first\)",
        ),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "train/2.jpg"),
            r"train/ has images beside its folders \(1, 2\.jpg first\)",
        ),
    ],
)
def test_an_image_folder_of_the_wrong_layout_is_refused(
    names: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError, match=message):
        listed("image_folder", unpack(folder(*names), tmp_path))


# --- on S3 ---

FILES = {  # for each way in which a storage is read
    "cifar10": [cifar("cifar10")[0]],
    "fashion_mnist": [zipped(idx_files()[0])],
    "imagenet": list(imagenet()),
    "image_folder": [
        folder(
            *[
                f"{part}/{label}/a ({i})? #1 @5%.png"
                for part in ("train", "val")
                for label in "ab"
                for i in range(11)
            ]
        )
    ],
}


@pytest.mark.parametrize(
    ("name", "layout"), [(name, i) for name, layouts in FILES.items() for i in range(len(layouts))]
)
def test_a_dataset_on_s3_is_the_one_on_disk(
    name: str, layout: int, s3: Storage, tmp_path: Path
) -> None:
    files = FILES[name][layout]
    for path, data in files.items():
        s3.write(f"downloads/{path}", data)
    if name == "image_folder":
        s3.write("downloads/.hidden/x.png", b"")
    settings: dict[str, Any] = {
        "rows_per_shard": 7,
        "storing": Storing(image_size=24 if DATASETS[name].encoded else 0),
    }
    here = write_dataset(
        DATASETS[name],
        Storage.at(tmp_path / "here"),
        path=str(unpack(files, tmp_path / "downloads")),
        **settings,
    )
    there = write_dataset(
        DATASETS[name], s3.child("shards"), path=s3.full("downloads/"), **settings
    )
    assert manifest_hash(here) == manifest_hash(there)


def test_what_is_not_on_s3_and_what_is_wrong_there_is_refused_like_on_disk(s3: Storage) -> None:
    with pytest.raises(
        LayoutError,
        match=r"data\.path s3://\S+/nowhere: it is not there; for cifar10 give the official",
    ):
        DATASETS["cifar10"].open(s3.full("nowhere"))
    s3.write("half/train/n01440764/a.JPEG", b"")
    with pytest.raises(LayoutError, match=r"it has neither val/ nor ILSVRC2012_img_val\.tar"):
        DATASETS["imagenet"].open(s3.full("half"))
    with pytest.raises(LayoutError, match="it is not a folder"):
        DATASETS["image_folder"].open(s3.full("half/train/n01440764/a.JPEG"))
    own = Source("m:f", lambda path: None, images=0, test=0, val=0, about="", layout="a folder")
    with pytest.raises(LayoutError, match="user-defined data sets are read from a local folder"):
        own.open(s3.full("half"))


def test_a_dataset_that_needs_a_folder_says_so_when_none_is_given() -> None:
    with pytest.raises(
        LayoutError,
        match=r"data\.path must not be empty; for imagenet give a folder with train/WNID",
    ):
        DATASETS["imagenet"].open("")
