"""Test images of image files: the pixels of published figures, and those that a list names."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from archives import imagenet, unpack
from PIL import Image
from torchvision import transforms

from sat_ray.data.images import Storing
from sat_ray.data.shards.changes import ChangedDataError
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.manifest import manifest_hash
from sat_ray.data.shards.reading import read_split
from sat_ray.data.shards.test_images import TestImages
from sat_ray.data.sources.registry import DATASETS
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings

JPEG = Storing(image_size=28, encoding="jpeg")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a small ImageNet in both layouts."""
    root = tmp_path_factory.mktemp("imagenet")
    names = ("folders", "tars")
    return tuple(unpack(files, root / name) for files, name in zip(imagenet(), names, strict=True))


def prepare(path: Path, target: Path, test: TestImages | None, storing: Storing) -> dict[str, Any]:
    """Prepare a small ImageNet in shards of 5 images."""
    return write_dataset(
        DATASETS["imagenet"],
        Storage.at(target),
        rows_per_shard=5,
        path=str(path),
        storing=storing,
        test=test,
        enlarged_share=1.0,
    )


def test_test_images_have_the_pixels_of_torchvisions_resize_and_centre_crop(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """28 of 32 is 224 of 256."""
    settings = DataSettings(dataset="imagenet", image_size=28, test_crop=0.875, encoding="jpeg")
    manifest = prepare(folders[0], tmp_path, settings.test_images(), settings.storing())
    assert manifest["test_images"] == {"encoding": "raw", "resize": 32}
    usual = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()]
    )
    found = DATASETS["imagenet"].open(str(folders[0]))
    test, train = (read_split(Storage.at(tmp_path), split) for split in ("test", "train"))
    expected = [
        usual(Image.open(io.BytesIO(found.images[i].read()))) for i in test.image_ids.tolist()
    ]
    assert torch.equal(test.images, torch.stack(expected))
    assert train.images.shape[1:] == (3, 28, 28)
    plain = DataSettings(dataset="imagenet", image_size=224, test_crop=0.875)
    assert plain.test_images().resize == 256


def test_without_settings_of_their_own_raw_test_images_are_stored_as_before(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    storing = dataclasses.replace(JPEG, encoding="raw")
    one, other = (
        prepare(folders[0], tmp_path / name, test, storing)
        for name, test in (("one", None), ("other", DataSettings().test_images()))
    )
    assert manifest_hash(one) == manifest_hash(other) and "test_images" not in one


def test_a_list_chooses_the_test_images_in_its_order_in_either_layout(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = DATASETS["imagenet"].open(str(folders[0]))
    ids = found.held_out["test"].tolist()
    wanted = [ids[7], ids[0], ids[3]]
    lines = [f"{found.class_names[found.labels[i]]}/{found.images[i].name}" for i in wanted[:2]] + [
        found.images[wanted[2]].name
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    test = TestImages(names=str(tmp_path / "list.txt"))
    manifests = [prepare(path, tmp_path / path.name, test, JPEG) for path in folders]
    assert manifest_hash(manifests[0]) == manifest_hash(manifests[1])
    assert manifests[0]["splits"]["test"] == 3 and manifests[0]["test_images"]["left_out"] == 6
    split = read_split(Storage.at(tmp_path / folders[1].name), "test")
    assert split.image_ids.tolist() == wanted
    assert split.labels.tolist() == found.labels[wanted].tolist()
    test.check_unchanged(manifests[0])
    (tmp_path / "list.txt").write_text(lines[0])
    with pytest.raises(ChangedDataError, match="has changed since the dataset was prepared"):
        test.check_unchanged(manifests[0])
    (tmp_path / "list.txt").unlink()
    test.check_unchanged(manifests[0])


def test_names_with_blanks_in_a_file_that_windows_wrote_are_read(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / "images" / ("big bird" if number % 2 else "owl")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"photo {number}.png")
    source = DATASETS["image_folder"]
    found = source.open(str(tmp_path / "images"))
    splits = source.splits(found)
    wanted = splits["test"].tolist()[::-1]
    lines = [
        f"{found.class_names[found.labels[i]]}/{found.images[i].name.rpartition('/')[2]}"
        for i in wanted
    ]
    (tmp_path / "list.txt").write_bytes(("\ufeff" + "\r\n".join([*lines, ""])).encode())
    chosen, _ = TestImages(names=str(tmp_path / "list.txt")).chosen(splits, found)
    assert chosen["test"].tolist() == wanted and len(wanted) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["nothing.JPEG", "n0/other.JPEG"], "got 2 that are not (nothing.JPEG, n0/other.JPEG)"),
        ([], "got none"),
        (["FIRST", "FIRST"], "must name each image once, got "),
        (None, "it is not there"),
    ],
)
def test_a_list_that_names_no_images_is_refused_in_one_line(
    lines: list[str] | None, message: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    found = DATASETS["imagenet"].open(str(folders[0]))
    first = found.images[found.held_out["test"][0]].name
    path = tmp_path / "list.txt"
    if lines is not None:
        path.write_text("\n".join(lines).replace("FIRST", first))
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        prepare(folders[0], tmp_path / "out", TestImages(names=str(path)), JPEG)
    assert str(refused.value).startswith(f"data.test_list {path}") or lines is None
    assert "\n" not in str(refused.value)


def test_settings_of_test_images_are_part_of_the_datasets_identity_where_they_are_given() -> None:
    plain = DataSettings(dataset="imagenet", image_size=224)
    assert not {"test_crop", "test_list", "test_encoding"} & plain.identity().keys()
    for change in ({"test_crop": 0.875}, {"test_list": "list.txt"}):
        assert dataclasses.replace(plain, **change).identity() != plain.identity()
    # an earlier version stored these test images as JPEG: its shards are not taken for these
    assert DataSettings(dataset="imagenet", encoding="jpeg").identity()["test_encoding"] == "raw"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "cifar10", "test_crop": 0.5}, "must be 1 and empty for cifar10, got 0.5"),
        ({"dataset": "digits", "test_list": "a.txt"}, "its images are no files with names"),
        ({"dataset": "imagenet", "test_crop": 0.875}, "must be 1 without data.image_size"),
        ({"dataset": "imagenet", "test_crop": 0}, "must be a number greater than 0 and at most 1"),
        ({"dataset": "imagenet", "test_list": "s3://me:secret@b/x"}, "without login and settings"),
    ],
)
def test_settings_of_test_images_that_make_no_sense_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        DataSettings(**settings)
