"""Training images that change after they were prepared, and .npz files to train on."""

import dataclasses
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import image_file, imagenet, unpack
from prepared_data import prepared

from sat_ray.data.shards.changes import SOURCE, ChangedDataError
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.reading import read_split
from sat_ray.data.sources import npz
from sat_ray.data.sources.registry import DATASETS, Listing, Source, dataset_source
from sat_ray.data.sources.user_defined import counted, user_defined_source
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.checks.claims import sweep_of
from sat_ray.integrations.command_line.parsing import parse
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.tasks import Dataset

MODULE = """
import numpy as np

def toy():
    with np.load({npz!r}) as file:
        return file["images"], file["labels"], ("a", "b", "c")

def there(path=""):
    if path:
        with np.load(path) as file:
            return file["images"], file["labels"], ("a", "b", "c")
    return toy()
"""


def photographs(folder: Path, *, classes: int = 12) -> Path:
    """Write an image folder of four pictures a class."""
    names = [f"c{label:02d}/{number}.png" for label in range(classes) for number in range(4)]
    return unpack({name: image_file(i, kind="PNG") for i, name in enumerate(names)}, folder)


def arrays(path: Path, *, seed: int = 0, **changed: Any) -> Path:
    """Write an .npz of thirty images of three classes."""
    draw = np.random.default_rng(seed)
    found = {
        "images": draw.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8),
        "labels": np.arange(30) % 3,
    }
    np.savez_compressed(path, **(found | changed))
    return path


def prepare(dataset: str, path: str | Path, root: Path, *options: str) -> Dataset:
    """Run the stage as a sweep would."""
    words = ["digits", "--data.dataset", dataset, "--storage", str(root / "runs")]
    words += [*options, *(["--data.path", str(path)] if path else [])]
    return stages.prepare(sweep_of(parse(words, RECIPES, default=DEFAULT, about="")))


def replace_pictures(folder: Path) -> None:
    """Put other pictures in the place of all."""
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        file.write_bytes(image_file(1000 + number, kind="PNG"))


def touch_one(folder: Path) -> None:
    """Give one picture another time."""
    file = next(folder.rglob("*.png"))
    os.utime(file, ns=(1, 1))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "two classes deleted and the rest replaced": (
        lambda folder: (
            [shutil.rmtree(folder / name) for name in ("c03", "c07")] and replace_pictures(folder)
        ),
        r"12 classes then, 10 now; 48 images then, 40 now",
    ),
    "every picture replaced": (replace_pictures, "as many images, but other files or pixels"),
    "one picture touched": (touch_one, "as many images, but other files or pixels"),
    "a picture added": (
        lambda folder: (folder / "c00" / "new.png").write_bytes(image_file(7, kind="PNG")),
        "48 images then, 49 now",
    ),
    "a class renamed": (
        lambda folder: (folder / "c00").rename(folder / "zz"),
        "as many images, but other files",
    ),
    "a class emptied": (
        lambda folder: [file.unlink() for file in (folder / "c00").iterdir()],
        "has 1 class folders without images, c00 first",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_image_folder_is_refused_in_one_line_that_says_what_to_do(
    change: str, tmp_path: Path
) -> None:
    folder = photographs(tmp_path / "in")
    made = prepare("image_folder", folder, tmp_path)
    assert prepare("image_folder", folder, tmp_path) == made
    act, said = CHANGES[change]
    act(folder)
    with pytest.raises(ChangedDataError, match=said) as caught:
        prepare("image_folder", folder, tmp_path)
    line = str(caught.value)
    assert line.startswith(f"data.path {folder}") and "\n" not in line
    assert f"move {made.uri} away and prepare it again" in line
    shutil.move(made.uri, tmp_path / "away")
    if change != "a class emptied":
        assert (
            prepare("image_folder", folder, tmp_path).hash != made.hash
            or change == "one picture touched"
        )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": "x", "classes": 2}'])
def test_a_damaged_fingerprint_is_refused_in_one_line_that_says_what_to_do(
    text: str, tmp_path: Path
) -> None:
    folder = photographs(tmp_path / "in")
    made = prepare("image_folder", folder, tmp_path)
    Path(made.uri, SOURCE).write_text(text)
    with pytest.raises(ChangedDataError, match=rf"^{made.uri}/{SOURCE} ") as caught:
        prepare("image_folder", folder, tmp_path)
    assert f"move {made.uri} away and prepare it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_are_not_there_any_more_are_not_needed(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "in")
    made = prepare("image_folder", folder, tmp_path)
    shutil.rmtree(folder)
    assert prepare("image_folder", folder, tmp_path) == made


def test_shards_that_an_earlier_version_prepared_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "in")
    made = prepare("image_folder", folder, tmp_path)
    (Path(made.uri) / SOURCE).unlink()
    replace_pictures(folder)
    assert prepare("image_folder", folder, tmp_path) == made


def test_a_resumed_preparation_mixes_no_pictures(tmp_path: Path) -> None:
    folder, storage = photographs(tmp_path / "in"), Storage.at(tmp_path / "out")
    settings: dict[str, Any] = {"rows_per_shard": 5, "path": str(folder)}

    def stop(function: Any, tasks: Any) -> Any:
        for number, task in enumerate(tasks):
            if number == 4:
                raise KeyboardInterrupt
            yield function(task)

    with pytest.raises(KeyboardInterrupt):
        write_dataset(DATASETS["image_folder"], storage, **settings, run=stop)
    replace_pictures(folder)
    resumed = write_dataset(DATASETS["image_folder"], storage, **settings)
    assert resumed == write_dataset(
        DATASETS["image_folder"], Storage.at(tmp_path / "new"), **settings
    )


def test_a_listing_of_the_users_own_is_watched_too(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "in")
    listed = DATASETS["image_folder"].open(str(folder))
    assert isinstance(listed, Listing)
    bare = dataclasses.replace(
        listed, images=[dataclasses.replace(place, stamp="") for place in listed.images]
    )
    source = Source("own:photos", lambda: bare, images=0, test=0, val=0, about="", encoded=True)
    storage = Storage.at(tmp_path / "out")
    first = write_dataset(source, storage, rows_per_shard=64)
    replace_pictures(folder)
    assert write_dataset(source, storage, rows_per_shard=64) != first


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module whose functions read an .npz; return the .npz."""
    path = arrays(tmp_path / "toy.npz")
    sys.modules.pop("changing_data", None)  # of another test
    (tmp_path / "changing_data.py").write_text(MODULE.format(npz=str(path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop("changing_data", None)
    user_defined_source.cache_clear()


def test_a_function_that_returns_other_images_is_noticed(module: Path, tmp_path: Path) -> None:
    made = prepare("changing_data:toy", "", tmp_path)
    assert prepare("changing_data:toy", "", tmp_path) == made
    arrays(module, seed=1)
    with pytest.raises(ChangedDataError, match=r"data\.dataset changing_data:toy has changed"):
        prepare("changing_data:toy", "", tmp_path)
    module.unlink()
    assert prepare("changing_data:toy", "", tmp_path) == made, (
        "what is prepared needs its source no more"
    )


def test_a_function_whose_images_lost_a_class_is_noticed(module: Path, tmp_path: Path) -> None:
    made = prepare("changing_data:toy", "", tmp_path)
    arrays(module, labels=np.arange(30) % 2)
    with pytest.raises(ChangedDataError, match="got none with the label 2") as caught:
        prepare("changing_data:toy", "", tmp_path)
    assert f"move {made.uri} away and prepare it again" in str(caught.value)


def test_a_part_of_a_known_dataset_that_was_completed_is_noticed(tmp_path: Path) -> None:
    folders, _ = imagenet()
    folder = unpack(folders, tmp_path / "in")
    small = ["--data.image-size", "16"]
    made = prepare("imagenet", folder, tmp_path, *small)
    assert prepare("imagenet", folder, tmp_path, *small) == made
    assert prepare("imagenet", "", tmp_path, *small) == made, (
        "what is prepared needs its folder no more"
    )
    first = next(file for file in sorted(folder.glob("train/*/*")))
    shutil.copy(first, first.with_name("unpacked_later.JPEG"))
    with pytest.raises(ChangedDataError, match="33 images then, 34 now"):
        prepare("imagenet", folder, tmp_path, *small)


def test_a_function_with_an_optional_path_needs_none(module: Path, tmp_path: Path) -> None:
    source = dataset_source("changing_data:there")
    assert len(source.open().labels) == 30
    other = arrays(tmp_path / "other.npz", seed=2)
    assert (source.open(str(other)).images != source.open().images).any()  # type: ignore[union-attr]
    assert counted(source).images == 30
    assert (
        prepare("changing_data:there", "", tmp_path).uri
        != prepare("changing_data:there", other, tmp_path).uri
    )


# --- .npz ---


def test_an_npz_that_is_evaluated_can_be_trained_on_too(tmp_path: Path) -> None:
    path = arrays(tmp_path / "toy.npz", class_names=np.array(["x", "y", "z"]))
    made = prepare("npz", path, tmp_path)
    assert made.manifest["splits"] == {"train": 24, "val": 3, "test": 3}
    assert made.manifest["class_names"] == ["x", "y", "z"] and made.manifest["shape"] == [1, 8, 8]
    with np.load(path) as file:
        evaluated = read_split(Storage(prepared(str(path), Storage(str(tmp_path)))), "test")
        for split in ("train", "val", "test"):
            part = read_split(Storage(made.uri), split)
            ids = part.image_ids.numpy()
            assert np.array_equal(part.images.numpy(), file["images"][ids])
            assert np.array_equal(part.labels.numpy(), file["labels"][ids])
            assert (evaluated.images[part.image_ids] == part.images).all()
    arrays(path, seed=3, class_names=np.array(["x", "y", "z"]))
    with pytest.raises(ChangedDataError, match="as many images, but other files or pixels"):
        prepare("npz", path, tmp_path)


def test_an_npz_with_channels_last_and_without_names_is_trained_on(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 9, 8, 3), dtype=np.uint8)
    made = prepare("npz", arrays(tmp_path / "toy.npz", images=images), tmp_path)
    assert made.manifest["shape"] == [3, 9, 8] and made.manifest["class_names"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.arange(30) % 3 * 2}, r"got none with the label 1 \(1\)"),
        (
            {"images": np.ones((30, 1, 8, 8), np.uint8)},
            "must have pixels from 0 to 255, got none above 1; multiply",
        ),
        ({"images": np.full((30, 1, 8, 8), 7, np.uint8)}, "images must differ"),
    ],
)
def test_an_npz_that_cannot_be_trained_on_is_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare("npz", arrays(tmp_path / "toy.npz", **changed), tmp_path)


def test_what_is_no_npz_file_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.npz"):
        with pytest.raises(
            ValueError, match=r"for npz give an \.npz file of images \(N, C, H, W\)"
        ):
            prepare("npz", path, tmp_path)
    with pytest.raises(ValueError, match=r"data\.path must not be empty; for npz give"):
        prepare("npz", "", tmp_path)


ZEROS_AND_ONES = np.random.default_rng(0).integers(0, 2, (30, 1, 8, 8), dtype=np.uint8)


def test_pixels_of_0_and_1_alone_are_refused_by_every_reader(tmp_path: Path) -> None:
    from PIL import Image

    path = arrays(tmp_path / "toy.npz", images=ZEROS_AND_ONES)
    folder = tmp_path / "in"
    for number, image in enumerate(ZEROS_AND_ONES):
        (folder / "abc"[number % 3]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / "abc"[number % 3] / f"{number}.png")
    root = Storage(str(tmp_path))
    for act in (
        lambda: prepared(str(path), root),
        lambda: prepared(str(folder), root),
        lambda: prepare("npz", path, tmp_path),
        lambda: prepare("image_folder", folder, tmp_path),
    ):
        with pytest.raises(
            ValueError,
            match="must have pixels from 0 to 255, got none above 1; multiply images",
        ):
            act()
    assert not list(tmp_path.rglob("manifest.json"))


def test_an_npz_that_announces_more_than_it_holds_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2000, 3, 1000, 1000), }\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("images.npy", "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
            for _ in range(60):
                member.write(bytes(100_000_000 // 50))
        with file.open("labels.npy", "w") as member:
            np.lib.format.write_array(member, np.arange(2000) % 3)
    monkeypatch.setattr(np, "load", lambda *given, **named: pytest.fail("it was read"))
    with pytest.raises(
        ValueError, match=r"images\.npy announces 6,000,000,000 bytes and has 120,000,0"
    ):
        npz.read_npz(path)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"free_memory": lambda: 3000},
            "announce 2,160 bytes, and 3,000 bytes of memory are free; split it",
        ),
        (
            {"UNSUSPECTED": 100, "MOST_PACKING": 0.1},
            "announce 2,160 bytes in a file of [0-9,]+, more than images can be packed",
        ),
    ],
)
def test_arrays_that_memory_cannot_hold_or_that_are_packed_too_well_are_refused(
    limits: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = arrays(tmp_path / "toy.npz")
    assert len(npz.read_npz(path)[0]) == 30
    for name, value in limits.items():
        monkeypatch.setattr(npz, name, value)
    with pytest.raises(ValueError, match=message):
        npz.read_npz(path)


def test_free_memory_is_some_of_the_machines() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < npz.free_memory() <= whole
