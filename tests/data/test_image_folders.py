"""Image folders as strangers have them: what is read, what is refused,
and one reader for training and evaluation.
"""

import io
import os
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import image_file, unpack
from PIL import Image
from prepared_data import prepared
from torchvision.datasets import ImageFolder

from sat_ray.data import images
from sat_ray.data.images import CorruptImageError, Storing, opened
from sat_ray.data.shards import writer as preparing
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.reading import read_split
from sat_ray.data.sources import base as sources
from sat_ray.data.sources.base import Place
from sat_ray.data.sources.registry import DATASETS, LayoutError, Listing
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.report.console import Reporter
from sat_ray.storage.store import Storage
from sat_ray.utils.names import printable

BASE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
GRAY = BASE[..., 0]


def encoded(image: Image.Image, **settings: Any) -> bytes:
    """Return an image as a file."""
    sink = io.BytesIO()
    image.save(sink, **settings)
    return sink.getvalue()


def png(width: int, height: int) -> bytes:
    """Return a small PNG whose header announces any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


PALETTE = Image.fromarray(BASE).quantize(16)
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(255 - BASE)]}
RIGHT: dict[str, tuple[bytes, np.ndarray]] = {
    "gray.png": (encoded(Image.fromarray(GRAY), format="PNG"), GRAY),
    "gray.tif": (encoded(Image.fromarray(GRAY), format="TIFF"), GRAY),
    "gray_alpha.png": (encoded(Image.fromarray(GRAY).convert("LA"), format="PNG"), GRAY),
    "one_bit.png": (
        encoded(Image.fromarray(GRAY > 127), format="PNG"),
        np.where(GRAY > 127, 255, 0),
    ),
    "colour.png": (encoded(Image.fromarray(BASE), format="PNG"), BASE),
    "colour.bmp": (encoded(Image.fromarray(BASE), format="BMP"), BASE),
    "colour.webp": (encoded(Image.fromarray(BASE), format="WEBP", lossless=True), BASE),
    "alpha.png": (encoded(Image.fromarray(BASE).convert("RGBA"), format="PNG"), BASE),
    "palette.png": (encoded(PALETTE, format="PNG"), np.asarray(PALETTE.convert("RGB"))),
    "one_frame.gif": (encoded(PALETTE, format="GIF"), np.asarray(PALETTE.convert("RGB"))),
}
WRONG: dict[str, tuple[bytes, str]] = {
    "gray16.png": (
        encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), format="PNG"),
        "PIL mode I;16",
    ),
    "gray16.tif": (
        encoded(Image.fromarray(GRAY.astype(np.uint16) * 257), format="TIFF"),
        "PIL mode I;16",
    ),
    "gray32.tif": (
        encoded(Image.fromarray(GRAY.astype(np.int32) * 257), format="TIFF"),
        "PIL mode I,",
    ),
    "float.tif": (
        encoded(Image.fromarray(GRAY.astype(np.float32) / 255), format="TIFF"),
        "PIL mode F",
    ),
    "animated.gif": (encoded(Image.fromarray(BASE), format="GIF", **FRAMES), "it has 2 frames"),
    "animated.png": (encoded(Image.fromarray(BASE), format="PNG", **FRAMES), "it has 2 frames"),
    "pages.tif": (encoded(Image.fromarray(BASE), format="TIFF", **FRAMES), "it has 2 frames"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n", "not an image"),
    "page.jpg": (b"<html>404</html>", "not an image"),
    "bomb.png": (
        png(12_000, 12_000),
        "it says that it is 12000 x 12000; at most 100,000,000 pixels",
    ),
    "a bomb that PIL refuses.png": (
        png(200_000, 200_000),
        "Image size (40000000000 pixels) exceeds limit",
    ),
}


def both_readers(name: str, data: bytes, root: Path) -> tuple[list[np.ndarray], list[str]]:
    """Read twenty copies of a file as training and as evaluation do; return first images (H, W, 3),
    or what was refused.
    """
    names = [f"{label}/{number}{Path(name).suffix}" for label in "ab" for number in range(10)]
    folder = unpack(dict.fromkeys(names, data), root / "in")
    found, refused = [], []
    readers: list[Callable[[], Storage]] = [
        lambda: trained(folder, root / "trained"),
        lambda: Storage(prepared(str(folder), Storage(str(root)))),
    ]
    for reader in readers:
        try:
            pixels = read_split(reader(), "test").images[0].numpy().transpose(1, 2, 0)
            found.append(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
        except ValueError as error:
            refused.append(str(error))
    return found, refused


def trained(folder: Path, target: Path) -> Storage:
    """Prepare an image folder as training does."""
    storage = Storage.at(target)
    write_dataset(DATASETS["image_folder"], storage, rows_per_shard=64, path=str(folder))
    return storage


@pytest.mark.parametrize("name", RIGHT)
def test_training_and_evaluation_read_the_same_right_pixels(name: str, tmp_path: Path) -> None:
    data, expected = RIGHT[name]
    found, refused = both_readers(name, data, tmp_path)
    assert not refused
    wanted = np.broadcast_to(expected if expected.ndim == 3 else expected[..., None], BASE.shape)
    assert all(np.array_equal(one, wanted) for one in found)


@pytest.mark.parametrize("name", WRONG)
def test_training_and_evaluation_refuse_the_same_files(name: str, tmp_path: Path) -> None:
    data, reason = WRONG[name]
    found, refused = both_readers(name, data, tmp_path)
    assert not found and len(refused) == 2
    for line in refused:
        assert "20 of 20" in line and reason in line and "\n" not in line


def test_a_jpeg_with_a_preview_behind_it_is_an_image(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(BASE), format="MPO", **FRAMES)
    found, refused = both_readers("camera.jpg", data, tmp_path)
    assert len(found) == 2 and not refused and np.array_equal(*found)
    assert (
        np.abs(found[0].astype(int) - np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).max()
        == 0
    )


def test_channels_follow_what_the_model_takes(tmp_path: Path) -> None:
    gray = unpack(
        {f"{c}/{i}.png": RIGHT["gray.png"][0] for c in "ab" for i in range(3)}, tmp_path / "gray"
    )
    root = Storage(str(tmp_path))
    shapes = {
        channels: read_split(
            Storage(prepared(str(gray), root, channels=channels)), "test"
        ).images.shape[1:]
        for channels in (None, 1, 3)
    }
    assert {channels: tuple(shape) for channels, shape in shapes.items()} == {
        None: (1, 16, 16),
        1: (1, 16, 16),
        3: (3, 16, 16),
    }
    ours = read_split(trained(gray, tmp_path / "trained"), "test").images
    theirs = read_split(Storage(prepared(str(gray), root, channels=3)), "test").images
    assert (ours[0] == theirs[0]).all()


# --- layouts ---


def listed(path: Path) -> Listing:
    """List an image folder."""
    found = DATASETS["image_folder"].open(str(path))
    assert isinstance(found, Listing)
    return found


def test_images_deeper_in_a_class_are_read_in_torchvisions_order(tmp_path: Path) -> None:
    names = [
        "cat/b.png",
        "cat/a/1.png",
        "cat/a b/2.png",
        "cat/a/deep/3.png",
        "cat/z.png",
        "dog/x/y/1.png",
        "dog/1.png",
    ]
    folder = unpack(
        {name: image_file(i, kind="PNG") for i, name in enumerate(names)}, tmp_path / "in"
    )
    theirs = ImageFolder(str(folder))
    assert [place.path for place in listed(folder).images] == [path for path, _ in theirs.samples]
    assert listed(folder).labels.tolist() == theirs.targets and len(theirs.targets) == len(names)
    split = read_split(Storage(prepared(str(folder), Storage(str(tmp_path)))), "test")
    assert split.labels.tolist() == theirs.targets
    for image, (path, _) in zip(split.images, theirs.samples, strict=True):
        assert np.array_equal(image.numpy().transpose(1, 2, 0), np.asarray(Image.open(path)))


LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "valid beside train": (
        ("train/a/1.png", "train/b/1.png", "valid/a/1.png", "valid/b/1.png"),
        (),
        (
            "in/ has 1 folders beside train that are no splits, valid first; name the splits "
            "train, "
            "val and test"
        ),
    ),
    "a lone valid and training": (
        ("training/a/1.png", "validation/a/1.png"),
        (),
        "in/ has 2 folders that are no splits, training first",
    ),
    "a test split without classes": (
        ("train/a/1.png", "train/b/1.png", "test/1.png"),
        (),
        "in/ has the split test without folders of classes in it; sort its images into one folder",
    ),
    "splits without classes": (
        ("train/1.png", "test1/1.png"),
        (),
        "in/ has the split train without folders of classes in it",
    ),
    "names of splits with more words": (
        ("training_set/a/1.png", "training_set/b/1.png", "test_set/a/1.png"),
        (),
        "in/ has 2 folders that are no splits, test_set first",
    ),
    "names of splits behind other words": (
        ("seg_train/a/1.png", "seg_test/a/1.png"),
        (),
        "in/ has 2 folders that are no splits, seg_test first",
    ),
    "names of splits with years": (
        ("train2017/a/1.png", "val2017/1.png"),
        (),
        "in/ has 2 folders that are no splits, train2017 first",
    ),
    "two folders of one class": (
        ("caf\u00e9/1.png", "cafe\u0301/1.png", "zoo/1.png"),
        (),
        "in/ has two folders for the class caf\u00e9, one in each Unicode form, NFC and NFD",
    ),
    "no train": (("val/a/1.png", "test/a/1.png"), (), "in/ has val and test and no train"),
    "an empty class": (
        ("train/a/1.png", "train/c/1.png", "test/a/1.png"),
        ("train/b", "train/bb"),
        "train/ has 2 class folders without images, b first; remove them, or fill them",
    ),
    "an empty class of a plain folder": (
        ("a/1.png", "c/1.png"),
        ("b",),
        "in/ has 1 class folders without images, b first",
    ),
    "a class in another Unicode form": (
        ("train/caf\u00e9/1.png", "train/zoo/1.png", "test/cafe\u0301/1.png"),
        (),
        "test/ has classes that train/ has not: cafe\u0301 (train/ has it in another Unicode form",
    ),
    "lists of boxes": (
        ("train/a/images/1.JPEG", "train/a/a_boxes.txt", "train/b/images/1.JPEG"),
        (),
        "train/ has 1 files that are no images by their names, a/a_boxes.txt first; move them away",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_would_be_left_out_is_refused_with_folder_and_count(
    layout: str, tmp_path: Path
) -> None:
    names, folders, message = LAYOUTS[layout]
    folder = unpack({name: image_file(1, kind="PNG") for name in names}, tmp_path / "in")
    for name in folders:
        (folder / name).mkdir()
    with pytest.raises(LayoutError) as caught:
        listed(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if message.startswith("in/ has ") and layout != "no train":
        with pytest.raises(ValueError) as caught:
            prepared(str(folder), Storage(str(tmp_path)))
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_above_that_of_the_classes_is_not_evaluated(tmp_path: Path) -> None:
    names = [f"images/{label}/{i}.png" for label in "ab" for i in range(2)]
    folder = unpack({name: image_file(1, kind="PNG") for name in names}, tmp_path / "in")
    with pytest.raises(ValueError, match=r"one sub-folder with images, images, .*; name the fold"):
        prepared(str(folder), Storage(str(tmp_path)))
    assert prepared(str(folder / "images"), Storage(str(tmp_path)))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    names = [f"{label}/{i}.png" for label in ("car", "test tube", "train") for i in range(4)]
    folder = unpack({name: image_file(1, kind="PNG") for name in names}, tmp_path / "in")
    assert listed(folder).class_names == ("car", "test tube", "train")


def test_a_folder_of_splits_is_not_evaluated_as_classes(tmp_path: Path) -> None:
    names = [
        f"{split}/{label}/{i}.png"
        for split in ("train", "test")
        for label in "ab"
        for i in range(2)
    ]
    folder = unpack({name: image_file(1, kind="PNG") for name in names}, tmp_path / "in")
    with pytest.raises(
        ValueError, match=rf"has the splits train, test; name one of them: {folder}/test"
    ):
        prepared(str(folder), Storage(str(tmp_path)))
    assert len(read_split(Storage(prepared(f"{folder}/test", Storage(str(tmp_path)))), "test")) == 4


@pytest.mark.parametrize("splits", [("test",), ("val", "test")])
def test_a_folder_of_splits_without_train_says_what_to_evaluate(
    splits: tuple[str, ...], tmp_path: Path
) -> None:
    names = [f"{split}/{label}/1.png" for split in splits for label in "ab"]
    folder = unpack({name: image_file(1, kind="PNG") for name in names}, tmp_path / "in")
    with pytest.raises(
        ValueError, match=rf"has the splits {', '.join(splits)}; name one of them: {folder}/test"
    ):
        prepared(str(folder), Storage(str(tmp_path)))


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    folder = unpack({f"{c}/1.png": image_file(1, kind="PNG") for c in "ab"}, tmp_path / "in")
    (folder / "a" / "2.png").symlink_to("nothing")
    for act in (
        lambda: prepared(str(folder), Storage(str(tmp_path))),
        lambda: trained(folder, tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=r"a/2\.png is a link to nothing; remove it"):
            act()


def test_a_link_to_a_folder_above_is_refused(tmp_path: Path) -> None:
    folder = unpack({f"{c}/1.png": image_file(1, kind="PNG") for c in "ab"}, tmp_path / "in")
    (folder / "a" / "up").symlink_to(folder / "a")
    with pytest.raises(LayoutError, match="a/up/ is a link to a folder that it is in"):
        listed(folder)


# --- what is no file, or says that it is huge ---

ONE = """
import sys
from sat_ray.data.shards.convert import open_data, written
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources import base as sources
from sat_ray.data.sources.base import Place
from sat_ray.data.sources.registry import DATASETS
from sat_ray.storage.store import Storage
try:
    if sys.argv[1] == "evaluate":
        written(open_data(sys.argv[2]), Storage(sys.argv[3]))
    else:
        shards = Storage(sys.argv[3])
        write_dataset(DATASETS["image_folder"], shards, rows_per_shard=64, path=sys.argv[2])
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("reader", ["train", "evaluate"])
def test_pipes_and_devices_are_refused_and_not_waited_for(reader: str, tmp_path: Path) -> None:
    folder = unpack({f"{c}/1.png": image_file(1, kind="PNG") for c in "ab"}, tmp_path / "in")
    os.mkfifo(folder / "a" / "x.png")
    (folder / "b" / "zero.png").symlink_to("/dev/zero")
    started = time.monotonic()
    words = [sys.executable, "-c", ONE, reader, str(folder), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert "2 of 4" in done.stdout and done.stdout.count("it is no regular file") == 2
    assert done.stdout.count("\n") == 1
    assert time.monotonic() - started < 200


def test_a_file_beyond_all_measure_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_BYTES", 1000)
    (tmp_path / "x.png").write_bytes(bytes(1001))
    with pytest.raises(CorruptImageError, match=r"it has 1,001 bytes; at most 1,000 are read"):
        Place("x", str(tmp_path / "x.png")).read()
    assert len(Place("x", str(tmp_path / "x.png"), offset=500, length=500).read()) == 500


def test_a_shard_that_no_memory_holds_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARD_BYTES", 5 * 768)
    folder = unpack(
        {f"{c}/{i}.png": RIGHT["colour.png"][0] for c in "ab" for i in range(20)}, tmp_path / "in"
    )
    with pytest.raises(
        ValueError, match=r"data\.rows_per_shard must be at most 5 for images of 16 x 16 .*, got 32"
    ):
        trained(folder, tmp_path / "out")


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held = list[bool]()
    monkeypatch.setattr(images, "LARGE_PIXELS", 100)
    data, convert = RIGHT["colour.png"][0], Image.Image.convert
    monkeypatch.setattr(
        Image.Image,
        "convert",
        lambda *given: held.append(images._ONE_LARGE.locked()) or convert(*given),
    )
    opened(data)
    assert held == [True] and not images._ONE_LARGE.locked()


def test_a_large_image_gives_no_warning_of_the_decoder_in_any_thread() -> None:
    data = RIGHT["colour.png"][0]
    large = data.replace((16).to_bytes(4) * 2, (9500).to_bytes(4) * 2)
    start = large.index(b"IHDR")
    checksum = zlib.crc32(large[start : start + 17]).to_bytes(4)
    large = large[: start + 17] + checksum + large[start + 21 :]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(images.header, [large] * 200))
    assert caught == [] and {one.size for one in found} == {(9500, 9500)}


# --- names that a terminal would obey ---

ODD = "a\x1b[31mred\x07\u202eevil\nline"


def test_names_from_files_reach_messages_without_control_characters(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in (ODD, f"{ODD}2") for number in range(10)]
    folder = unpack(dict.fromkeys(names, b"no image"), tmp_path / "in")
    messages = []
    for act in (
        lambda: prepared(str(folder), Storage(str(tmp_path))),
        lambda: trained(folder, tmp_path / "out"),
    ):
        with pytest.raises(ValueError) as caught:
            act()
        messages.append(str(caught.value))
    for one in (folder / ODD).iterdir():
        one.unlink()
    with pytest.raises(ValueError) as caught:
        listed(folder)
    for line in (*messages, str(caught.value)):
        assert r"a\x1b[31mred\x07\u202eevil\nline" in line
        assert line == printable(line)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café · 漢字 ε=8/255 😀", "café · 漢字 ε=8/255 😀"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x9b31m", r"\x9b31m"),
        ("x\u2028y\u200bz\udc80", r"x\u2028y\u200bz\udc80"),
    ],
)
def test_only_what_a_terminal_would_obey_is_rewritten(text: str, shown: str) -> None:
    assert printable(text) == shown and printable(shown) == shown


def test_a_gray_image_is_stored_with_one_channel_where_that_is_asked_for() -> None:
    assert Storing().pixels(opened(RIGHT["gray.png"][0], channels=1)).shape == (1, 16, 16)
    assert Storing(image_size=8).pixels(opened(RIGHT["colour.png"][0], channels=1)).shape == (
        1,
        8,
        8,
    )


def test_a_command_prints_no_escape_that_a_name_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError(f"data {tmp_path}/{ODD} is not there")

    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_status(fail) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    with Reporter() as reporter:
        reporter.say(f"class {ODD}")
    said = capsys.readouterr()
    assert r"a\x1b[31mred\x07\u202eevil" in said.err and r"a\x1b[31mred\x07\u202eevil" in said.out
    assert not {"\x1b", "\x07", "\u202e"} & set(said.err + said.out)
