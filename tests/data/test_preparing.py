"""From archives to shards: the same dataset from every layout, nothing done twice,
and what cannot be read is named.
"""

import dataclasses
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import cifar, image_file, imagenet, unpack
from PIL import Image
from torchvision import transforms

from sat_ray.data.images import CorruptImageError, Storing, opened
from sat_ray.data.shards import reading as shards
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.manifest import CorruptShardError, manifest_hash
from sat_ray.data.shards.reading import image_ids, read_split, verify
from sat_ray.data.shards.writer import PARTS, progress
from sat_ray.data.sources.registry import DATASETS
from sat_ray.data.split_ids import SPLITS
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.checks.claims import sweep_of
from sat_ray.integrations.command_line.checks.prepared import enlarged
from sat_ray.integrations.command_line.parsing import parse
from sat_ray.integrations.ray.prepare import in_tasks
from sat_ray.integrations.ray.session import ray_session
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, SweepConfig
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.tasks import Dataset

SMALL = Storing(image_size=24)


def prepare(name: str, path: Path, target: Path, **settings: Any) -> dict[str, Any]:
    """Prepare a dataset in shards of 5 images."""
    return write_dataset(
        DATASETS[name], Storage.at(target), path=str(path), **({"rows_per_shard": 5} | settings)
    )


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write a small ImageNet in both layouts."""
    root = tmp_path_factory.mktemp("imagenet")
    return tuple(
        unpack(files, root / name)
        for files, name in zip(imagenet(), ("folders", "tars"), strict=True)
    )


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_imagenets_two_layouts_make_the_same_dataset(
    imagenets: tuple[Path, Path], encoding: str, tmp_path: Path
) -> None:
    storing = dataclasses.replace(SMALL, encoding=encoding)
    one, other = (
        prepare("imagenet", path, tmp_path / path.name, storing=storing) for path in imagenets
    )
    assert manifest_hash(one) == manifest_hash(other)
    assert (
        one["splits"] == {"train": 23, "val": 1, "test": 9}
        and one["shape"] == [3, 24, 24]
        and one["encoding"] == encoding
    )
    assert one["corrupt"] == [] and len(one["shards"]) == 5 + 1 + 2


def test_images_are_resized_by_the_short_side_and_cut_at_the_centre_as_everybody_does(
    imagenets: tuple[Path, Path], tmp_path: Path
) -> None:
    prepare("imagenet", imagenets[0], tmp_path / "raw", storing=SMALL)
    prepare(
        "imagenet",
        imagenets[0],
        tmp_path / "jpeg",
        storing=dataclasses.replace(SMALL, encoding="jpeg"),
    )
    usual = transforms.Compose(
        [transforms.Resize(24), transforms.CenterCrop(24), transforms.PILToTensor()]
    )
    found = DATASETS["imagenet"].open(str(imagenets[0]))
    for split in SPLITS:
        raw, jpeg = (read_split(Storage.at(tmp_path / name), split) for name in ("raw", "jpeg"))
        expected = [
            usual(Image.open(io.BytesIO(found.images[i].read()))) for i in raw.image_ids.tolist()
        ]
        assert torch.equal(raw.images, torch.stack(expected))
        assert raw.labels.tolist() == found.labels[raw.image_ids.numpy()].tolist()
        assert torch.equal(raw.image_ids, jpeg.image_ids) and torch.equal(raw.labels, jpeg.labels)
        errors = (raw.images.float() - jpeg.images.float()).abs()
        if split == "test":  # never compressed
            assert torch.equal(raw.images, jpeg.images)
        else:
            assert 0 < errors.mean() < 3 and errors.max() < 40
        assert image_ids(Storage.at(tmp_path / "jpeg"), split).tolist() == jpeg.image_ids.tolist()


def test_the_mean_and_deviation_of_the_manifest_are_those_of_the_train_images(
    imagenets: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest = prepare("imagenet", imagenets[0], tmp_path, storing=SMALL)
    pixels = read_split(Storage.at(tmp_path), "train").images.double() / 255
    assert manifest["mean"] == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert manifest["std"] == pytest.approx(
        pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-6
    )


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"), ("RGB", "BMP")],
)
def test_every_kind_of_image_becomes_rgb(mode: str, kind: str) -> None:
    data = image_file(3, mode=mode, kind=kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(Storing().pixels(opened(data)), expected) and expected.shape == (
        3,
        30,
        40,
    )


@pytest.mark.parametrize(
    "data", [b"", b"not an image", image_file(0)[:300], image_file(0, kind="PNG")[:-200]]
)
def test_an_image_that_is_damaged_or_cut_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptImageError) as caught:
        opened(data)
    assert "\n" not in str(caught.value)


def broken_imagenet(folder: Path) -> Path:
    """Write an ImageNet with two images that cannot be read,
    one of them to train on and one to test on.
    """
    files = imagenet()[0]
    damaged = [
        "train/n01443537/n01443537_3.JPEG",
        next(name for name in files if name.endswith("val_00000004.JPEG")),
    ]
    return unpack(
        files | {damaged[0]: b"<html>404</html>", damaged[1]: files[damaged[1]][:200]}, folder
    )


def test_corrupt_images_below_the_share_are_left_out_and_listed(tmp_path: Path) -> None:
    manifest = prepare(
        "imagenet",
        broken_imagenet(tmp_path / "in"),
        tmp_path / "out",
        storing=SMALL,
        corrupt_share=0.1,
    )
    assert [(one["image_id"], one["image"]) for one in manifest["corrupt"]] == [
        (11, "n01443537_3.JPEG"),
        (27, "ILSVRC2012_val_00000004.JPEG"),
    ]
    assert all(one["reason"] for one in manifest["corrupt"])
    assert sum(manifest["splits"].values()) == 31 and manifest["splits"]["test"] == 8
    storage = Storage.at(tmp_path / "out")
    kept = [one for split in SPLITS for one in read_split(storage, split).image_ids.tolist()]
    assert sorted(kept) == [one for one in range(33) if one not in (11, 27)]


def test_more_corrupt_images_than_allowed_stop_it_and_are_named_and_a_larger_share_goes_on(
    tmp_path: Path,
) -> None:
    source, target = broken_imagenet(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(
        ValueError,
        match=r"2 of 33 images cannot be read: n01443537_3\.JPEG \(.*; data\.corrupt_share allows "
        r".*0\.05, 1 images",
    ):
        prepare("imagenet", source, target, storing=SMALL, corrupt_share=0.05)
    assert not (target / "manifest.json").exists()
    written = {path: path.stat().st_mtime_ns for path in target.glob("*.parquet")}
    prepare("imagenet", source, target, storing=SMALL, corrupt_share=0.07)
    assert {path: path.stat().st_mtime_ns for path in target.glob("*.parquet")} == written


def test_storage_that_is_away_for_a_while_makes_no_image_corrupt(tmp_path: Path) -> None:
    source, elsewhere = unpack(imagenet()[0], tmp_path / "in"), tmp_path / "elsewhere"
    found = Storing.pixels

    def goes_away(self: Storing, image: Image.Image) -> np.ndarray:
        if not elsewhere.exists():
            source.rename(elsewhere)
        return found(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storing, "pixels", goes_away)
        with pytest.raises(FileNotFoundError, match="JPEG"):
            prepare("imagenet", source, tmp_path / "out", storing=SMALL, corrupt_share=0.99)
    elsewhere.rename(source)
    manifest = prepare("imagenet", source, tmp_path / "out", storing=SMALL)
    assert manifest["corrupt"] == [] and sum(manifest["splits"].values()) == 33


def test_images_of_several_sizes_are_refused_unless_a_size_is_given(
    imagenets: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError,
        match=r"images differ in size: .* is \d+ x \d+, others \d+ x \d+; "
        r"give --data\.image-size N",
    ):
        prepare("imagenet", imagenets[0], tmp_path)
    with pytest.raises(
        ValueError,
        match=(
            r"images differ in size: \d+ x \d+ in .*parquet, \d+ x \d+ in .*; give "
            r"--data\.image-size N"
        ),
    ):
        prepare("imagenet", imagenets[0], tmp_path, rows_per_shard=1)


def test_images_smaller_than_they_are_stored_are_refused_unless_a_share_is_allowed(
    tmp_path: Path,
) -> None:
    sides = {"a/0": (40, 30), "a/1": (24, 30), "b/0": (50, 23), "b/1": (20, 60)}
    files = {f"{name}.png": image_file(3, kind="PNG", size=size) for name, size in sides.items()}
    source, target = unpack(files, tmp_path / "in"), tmp_path / "out"
    with pytest.raises(
        ValueError,
        match=r"2 of 4 images are smaller than data\.image_size, 24, the smallest is b/1\.png of "
        r"20 x 60; data\.enlarged_share allows a share of 0\.25, 1 images; "
        r"give --data\.image-size 20",
    ):
        prepare("image_folder", source, target, storing=SMALL, enlarged_share=0.25)
    assert not (target / "manifest.json").exists()
    written = {path: path.stat().st_mtime_ns for path in target.glob("*.parquet")}
    manifest = prepare("image_folder", source, target, storing=SMALL, enlarged_share=0.5)
    assert manifest["enlarged"] == 2 and manifest["shape"] == [3, 24, 24]
    assert {path: path.stat().st_mtime_ns for path in target.glob("*.parquet")} == written
    dataset = Dataset.open(str(target))
    assert dataset is not None and enlarged(dataset) == "images smaller than 24 x 24, enlarged: 2"
    assert "enlarged" not in prepare(
        "image_folder", source, tmp_path / "smaller", storing=Storing(image_size=20)
    )


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_constant_channel_is_refused_before_the_dataset_is_committed(
    encoding: str, tmp_path: Path
) -> None:
    """In jpeg too: the sums are of the pixels before they are encoded."""
    draw = np.random.default_rng(0)
    for number in range(20):
        pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        pixels[..., 2] = 200
        path = tmp_path / "in" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.raises(
        ValueError,
        match=r"^channel 2 of the training images must vary, got 200 in every pixel .*leave the ch",
    ):
        prepare(
            "image_folder", tmp_path / "in", tmp_path / "out", storing=Storing(encoding=encoding)
        )
    assert list((tmp_path / "out").glob("train-*.parquet"))
    assert not (tmp_path / "out" / "manifest.json").exists()


class StoppedError(Exception):
    """The machine went away."""


def stopping_after(count: int) -> Any:
    """Return a run that dies after some shards."""

    def run(function: Any, tasks: Iterable[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == count:
                raise StoppedError
            yield function(task)

    return run


def test_a_preparation_that_was_stopped_goes_on_where_it_was(
    imagenets: tuple[Path, Path], tmp_path: Path
) -> None:
    storage = Storage.at(tmp_path / "out")
    with pytest.raises(StoppedError):
        prepare("imagenet", imagenets[0], tmp_path / "out", storing=SMALL, run=stopping_after(3))
    assert progress(storage) == (3, 8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    resumed = prepare("imagenet", imagenets[0], tmp_path / "out", storing=SMALL)
    assert progress(storage) == (8, 8) and len(before) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert resumed == prepare("imagenet", imagenets[0], tmp_path / "undisturbed", storing=SMALL)


def test_shards_of_other_images_or_settings_are_made_anew(
    imagenets: tuple[Path, Path], tmp_path: Path
) -> None:
    prepare("imagenet", imagenets[0], tmp_path / "out", storing=SMALL)
    for storing in (Storing(image_size=16), dataclasses.replace(SMALL, encoding="jpeg")):
        again = prepare("imagenet", imagenets[0], tmp_path / "out", storing=storing)
        assert again == prepare(
            "imagenet", imagenets[0], tmp_path / f"new-{storing.image_size}", storing=storing
        )
        verify(Storage.at(tmp_path / "out"))


def test_a_large_dataset_is_verified_by_sizes_at_the_start_and_by_checksum_when_read(
    imagenets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("imagenet", imagenets[0], tmp_path, storing=SMALL)
    storage, path = Storage.at(tmp_path), tmp_path / "train-00002.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptShardError, match=r"train-00002\.parquet has sha256"):
        verify(storage)
    monkeypatch.setattr(shards, "VERIFIED_BYTES", 100)
    verify(storage)  # the size is right
    assert len(read_split(storage, "test")) == 9
    with pytest.raises(CorruptShardError, match=r"train-00002\.parquet has sha256"):
        read_split(storage, "train")
    path.write_bytes(whole[:-1])
    with pytest.raises(
        CorruptShardError,
        match=(
            rf"train-00002\.parquet has {len(whole) - 1} bytes, the manifest says {len(whole)}: "
            r"damaged"
        ),
    ):
        verify(storage)
    path.unlink()
    with pytest.raises(CorruptShardError, match=r"train-00002\.parquet is missing; restore"):
        verify(storage)


def test_only_encoded_images_are_sent_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        prepare("image_folder",
        unpack({f"{c}/{i}.png": image_file(i) for c in "ab" for i in range(9)}, tmp_path / "in"),
        tmp_path / "out",
                run=stopping_after(0))  # fmt: skip
    prepare(
        "cifar10",
        unpack(cifar("cifar10")[1], tmp_path / "cifar"),
        tmp_path / "other",
        run=stopping_after(0),
    )


def test_a_known_dataset_is_the_same_wherever_it_lies_and_an_image_folder_is_its_path() -> None:
    def config(**data: Any) -> SweepConfig:
        return dataclasses.replace(RECIPES[DEFAULT](), data=DataSettings(**data))

    assert (
        config(dataset="cifar10").semantic() == config(dataset="cifar10", path="/mnt/a").semantic()
    )
    assert (
        config(dataset="image_folder", path="/a").semantic()
        != config(dataset="image_folder", path="/b").semantic()
    )
    assert (
        config(dataset="imagenet", corrupt_share=0.1).semantic()
        == config(dataset="imagenet").semantic()
    )
    assert (
        config(dataset="imagenet", image_size=64).semantic()
        != config(dataset="imagenet").semantic()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "cifar10", "image_size": 16},
            r"data\.image_size and data\.encoding must be 0 and raw for cifar10, got 16 and raw",
        ),
        (
            {"dataset": "digits", "encoding": "jpeg"},
            r"must be 0 and raw for digits, got 0 and jpeg",
        ),
        (
            {"dataset": "imagenet", "encoding": "jpg"},
            r"data\.encoding 'jpg' is unknown; did you mean jpeg",
        ),
        (
            {"dataset": "imagenet", "image_size": -1},
            r"data\.image_size must be a whole number from 0 to 4096, got -1",
        ),
        (
            {"dataset": "imagenet", "corrupt_share": 1.0},
            r"data\.corrupt_share must be a number at least 0 and less than 1, got 1",
        ),
        (
            {"dataset": "imagenet", "enlarged_share": 1.5},
            r"data\.enlarged_share must be a number from 0 to 1, got 1\.5",
        ),
    ],
)
def test_data_settings_that_make_no_sense_are_refused_by_name(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**settings)


def test_the_prepare_stage_reads_the_folder_it_is_given_and_needs_it_only_once(
    tmp_path: Path,
) -> None:
    unpack(cifar("cifar10")[0], tmp_path / "downloads")
    words = ["digits", "--data.dataset", "cifar10", "--storage", str(tmp_path / "runs")]
    with pytest.raises(ValueError, match=r"data\.path must not be empty; for cifar10 give"):
        stages.prepare(sweep_of(parse(words, RECIPES, default=DEFAULT, about="")))
    given = stages.prepare(
        sweep_of(
            parse(
                [*words, "--data.path", str(tmp_path / "downloads")],
                RECIPES,
                default=DEFAULT,
                about="",
            )
        )
    )
    assert given == stages.prepare(sweep_of(parse(words, RECIPES, default=DEFAULT, about="")))
    assert given.manifest["splits"] == {"train": 29, "val": 1, "test": 6}


def test_ray_tasks_make_the_same_shards(
    imagenets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    expected = prepare(
        "imagenet", imagenets[1], tmp_path / "here", storing=SMALL, run=in_tasks
    )  # no Ray yet: in this process
    with ray_session():
        assert (
            prepare("imagenet", imagenets[1], tmp_path / "tasks", storing=SMALL, run=in_tasks)
            == expected
        )
        for path in (tmp_path / "here").glob("*.parquet"):
            assert path.read_bytes() == (tmp_path / "tasks" / path.name).read_bytes()
        with pytest.raises(ValueError, match="images differ in size") as caught:
            prepare("imagenet", imagenets[1], tmp_path / "sizes", run=in_tasks)
        assert type(caught.value) is ValueError
    assert len(list((tmp_path / "tasks" / PARTS).glob("*.parquet.json"))) == 8
