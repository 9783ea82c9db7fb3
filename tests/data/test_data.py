"""Splits that never change, shards that say when they were damaged, bytes that are the source's."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from sat_ray.data.images import Storing
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.manifest import MANIFEST, CorruptShardError, manifest_hash, read_manifest
from sat_ray.data.shards.parquet import as_split, shard_bytes
from sat_ray.data.shards.reading import read_split, verify
from sat_ray.data.sources.registry import DATASETS, Raw, Source, dataset_source
from sat_ray.data.split_ids import SPLITS, split_by_hash
from sat_ray.storage.sealed import SEAL, sealed
from sat_ray.storage.store import Storage

PINNED = {
    "train": "bd6f9fc0d83bb1eedea2997a9a7d4240f486296b76e3ea252ef779e60cb002c1",
    "val": "0e5c6618244f5841d12f3b515deb8de45e73a5dc8c26bc198abd8f5fe73f7016",
    "test": "29cde797561f1cd973ee35f4d59212e78f1f14fe0a3a72fa49e00bab80e92c82",
}


@pytest.fixture
def written(tmp_path: Path) -> tuple[Storage, dict[str, Any]]:
    """Write the digits in shards of 400 rows; return the folder and the manifest."""
    storage = Storage.at(tmp_path / "digits")
    return storage, write_dataset(DATASETS["digits"], storage, rows_per_shard=400)


def test_digits_are_split_into_718_180_899_disjoint_images_that_are_all_there(
    written: tuple[Storage, dict[str, Any]],
) -> None:
    parts = {split: read_split(written[0], split).image_ids.tolist() for split in SPLITS}
    assert {split: len(ids) for split, ids in parts.items()} == {
        "train": 718,
        "val": 180,
        "test": 899,
    }
    assert sorted(one for ids in parts.values() for one in ids) == list(range(1797))
    assert all(ids == sorted(ids) for ids in parts.values())


@pytest.mark.parametrize("split", SPLITS)
def test_the_digits_splits_are_fixed_for_ever(split: str) -> None:
    ids = split_by_hash("digits", 1797, test=899, val=180)[split]
    assert hashlib.sha256(json.dumps(ids.tolist()).encode()).hexdigest() == PINNED[split]


def test_images_are_the_source_rounded_to_255_levels_with_their_own_labels(
    written: tuple[Storage, dict[str, Any]],
) -> None:
    bunch = load_digits()
    for split in SPLITS:
        part = read_split(written[0], split)
        assert (
            part.images.dtype == torch.uint8
            and part.images.shape[1:] == (1, 8, 8)
            and part.labels.dtype == torch.int64
        )
        expected = np.rint(bunch.images[part.image_ids.numpy()] * 255 / 16)[:, None]
        assert np.array_equal(part.images.numpy(), expected)
        assert np.array_equal(part.labels.numpy(), bunch.target[part.image_ids.numpy()])


def test_the_split_depends_on_name_and_id_and_not_on_labels_or_pixels(tmp_path: Path) -> None:
    source = DATASETS["digits"]
    raw = source.read()
    other = Raw(255 - raw.images, raw.labels[::-1].copy(), raw.class_names)
    renamed = dataclasses.replace(source, read=lambda: other)
    for folder, one in (("a", source), ("b", renamed)):
        write_dataset(one, Storage.at(tmp_path / folder), rows_per_shard=1000)
    ours, theirs = (read_split(Storage.at(tmp_path / folder), "test") for folder in "ab")
    assert torch.equal(ours.image_ids, theirs.image_ids) and not torch.equal(
        ours.labels, theirs.labels
    )
    assert not np.array_equal(
        split_by_hash("digits", 100, test=50, val=10)["test"],
        split_by_hash("other", 100, test=50, val=10)["test"],
    )


def test_every_class_is_in_every_split(written: tuple[Storage, dict[str, Any]]) -> None:
    assert all(
        set(read_split(written[0], split).labels.tolist()) == set(range(10)) for split in SPLITS
    )


@pytest.mark.parametrize(("test", "val"), [(0, 0), (60, 40), (100, 1)])
def test_splits_that_leave_nothing_are_refused(test: int, val: int) -> None:
    with pytest.raises(ValueError, match="must be fewer than the 100 images of toy"):
        split_by_hash("toy", 100, test=test, val=val)


def test_the_manifest_says_everything_a_reader_needs(
    written: tuple[Storage, dict[str, Any]],
) -> None:
    storage, manifest = written
    assert sealed(manifest) == storage.read_json(MANIFEST)
    assert {key: manifest[key] for key in ("schema_version", "dataset", "shape", "splits")} == {
        "schema_version": 2,
        "dataset": "digits",
        "shape": [1, 8, 8],
        "splits": {"train": 718, "val": 180, "test": 899},
    }
    assert manifest["class_names"] == list("0123456789")
    pixels = to_pixels(read_split(storage, "train").images)
    assert manifest["mean"] == pytest.approx([pixels.mean().item()], abs=1e-5)
    assert manifest["std"] == pytest.approx([pixels.std(correction=0).item()], abs=1e-5)
    assert [(s["split"], s["rows"]) for s in manifest["shards"]] == [
        ("train", 400),
        ("train", 318),
        ("val", 180),
        ("test", 400),
        ("test", 400),
        ("test", 99),
    ]
    for shard in manifest["shards"]:
        assert hashlib.sha256(storage.read(shard["file"])).hexdigest() == shard["sha256"]


def test_a_dataset_written_twice_has_the_same_hash_and_shard_size_does_not_change_what_is_read(
    tmp_path: Path,
) -> None:
    first, again, other = (
        write_dataset(DATASETS["digits"], Storage.at(tmp_path / name), rows_per_shard=rows)
        for name, rows in (("a", 512), ("b", 512), ("c", 70))
    )
    assert manifest_hash(first) == manifest_hash(again) != manifest_hash(other)
    ours, theirs = (read_split(Storage.at(tmp_path / name), "val") for name in "ac")
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.image_ids, theirs.image_ids)


@pytest.mark.parametrize(
    "check", [verify, lambda storage: read_split(storage, "test")], ids=["verify", "read"]
)
def test_a_missing_shard_is_named_with_what_to_do(
    written: tuple[Storage, dict[str, Any]], check: Any
) -> None:
    Path(written[0].full("test-00001.parquet")).unlink()
    with pytest.raises(
        CorruptShardError,
        match=r"test-00001\.parquet is missing; restore the file, or .* prepare it again",
    ):
        check(written[0])


@pytest.mark.parametrize(
    "check", [verify, lambda storage: read_split(storage, "test")], ids=["verify", "read"]
)
@pytest.mark.parametrize("damage", ["one bit", "cut", "another shard"])
def test_a_damaged_shard_is_named_with_what_to_do(
    written: tuple[Storage, dict[str, Any]], check: Any, damage: str
) -> None:
    path = Path(written[0].full("test-00002.parquet"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    other = Path(written[0].full("test-00000.parquet")).read_bytes()
    path.write_bytes(
        {"one bit": bytes(data), "cut": bytes(data[:100]), "another shard": other}[damage]
    )
    with pytest.raises(
        CorruptShardError, match=r"test-00002\.parquet has sha256 .* damaged; restore the file"
    ) as caught:
        check(written[0])
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_damage_in_one_split_does_not_stop_the_others(
    written: tuple[Storage, dict[str, Any]],
) -> None:
    Path(written[0].full("test-00000.parquet")).write_bytes(b"")
    assert len(read_split(written[0], "train")) == 718


def test_another_schema_version_is_refused(written: tuple[Storage, dict[str, Any]]) -> None:
    written[0].write_json(MANIFEST, written[1] | {"schema_version": 3})
    with pytest.raises(CorruptShardError, match="must have schema version 2, got 3"):
        read_split(written[0], "val")


BAD_MANIFESTS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{not json", "is no JSON (Expecting property name"),
    "nothing": (b"", "is no JSON (Expecting value"),
    "no text": (b"\xff\xfe\x00", "is no JSON ("),
    "a list": (b"[]", "must hold a JSON object, got a list"),
    "no shards": ({"shards": None}, "shards must be a list of at least one shard, got nothing"),
    "an empty list of shards": (
        {"shards": []},
        "shards must be a list of at least one shard, got []",
    ),
    "a shard without rows": (
        {"shards": [{"file": "a", "split": "test", "bytes": 1, "sha256": "0"}]},
        "shards[0] must have file, split, rows, bytes, sha256, rows >= 1, got {'file': 'a'",
    ),
    "no splits": (
        {"splits": None},
        "splits must be the number of images of each split, got nothing",
    ),
    "no class names": ({"class_names": None}, "class_names must be a list of texts"),
    "no shape": ({"shape": None}, "shape must be channels, height and width"),
    "two axes": ({"shape": [8, 8]}, "whole numbers from 1 to 65536, got [8, 8]"),
    "more images than shards hold": (
        {"splits": {"train": 718, "val": 180, "test": 1000}},
        "splits.test must be 899, the rows of its shards, got 1000",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_a_manifest_that_cannot_be_right_is_named_with_field_and_value(
    change: Any, message: str, written: tuple[Storage, dict[str, Any]]
) -> None:
    storage, manifest = written
    changed = (
        {key: value for key, value in (manifest | change).items() if value is not None}
        if isinstance(change, dict)
        else None
    )
    storage.write(MANIFEST, change if changed is None else json.dumps(changed).encode())
    with pytest.raises(CorruptShardError) as caught:
        verify(storage)
    said = str(caught.value)
    assert said.startswith(storage.full(MANIFEST)) and message in said and "\n" not in said


def test_shards_of_another_shape_or_number_of_rows_than_the_manifest_says_are_named(
    written: tuple[Storage, dict[str, Any]],
) -> None:
    storage, manifest = written
    storage.write_json(MANIFEST, manifest | {"shape": [3, 8, 8]})
    with pytest.raises(
        ValueError,
        match=r"train-00000\.parquet must have 192 bytes, as .* \[3, 8, 8\] says, got 64 bytes",
    ):
        verify(storage)
    with pytest.raises(
        ValueError,
        match=r"image of a shard must have 192 bytes, as .* \[3, 8, 8\] says, got 64 bytes",
    ):
        read_split(storage, "test")
    first = manifest["shards"][0] | {"rows": 500}
    storage.write_json(
        MANIFEST,
        manifest
        | {
            "shards": [first, *manifest["shards"][1:]],
            "splits": manifest["splits"] | {"train": 818},
        },
    )
    with pytest.raises(
        CorruptShardError, match=r"train-00000\.parquet has 400 rows, the manifest says 500"
    ):
        verify(storage)


def test_a_jpeg_of_another_size_than_the_manifest_says_is_not_repeated_to_fill_it() -> None:
    stored = [Storing().encode(np.zeros((3, side, side), dtype=np.uint8)) for side in (4, 1)]
    table = pq.read_table(io.BytesIO(shard_bytes(stored, np.arange(2), np.arange(2))))
    with pytest.raises(
        ValueError,
        match=r"image of a shard must have \(3, 4, 4\), as .* \[3, 4, 4\] says, got \(3, 1, 1\)",
    ):
        as_split([table], [3, 4, 4])


def test_colour_images_of_any_shape_come_back_byte_for_byte(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    raw = Raw(
        draw.integers(0, 256, (50, 3, 5, 4), dtype=np.uint8),
        draw.integers(0, 3, 50),
        ("a", "b", "c"),
    )
    source = Source("toy", lambda: raw, images=50, test=20, val=10, about="")
    manifest = write_dataset(source, Storage.at(tmp_path), rows_per_shard=6)
    assert manifest["shape"] == [3, 5, 4] and len(manifest["mean"]) == len(manifest["std"]) == 3
    part = read_split(Storage.at(tmp_path), "test")
    assert np.array_equal(part.images.numpy(), raw.images[part.image_ids.numpy()])


@pytest.mark.parametrize(
    ("labels", "ids", "message"),
    [
        (
            [0, 2**32 + 1],
            [0, 1],
            r"labels must lie in -2147483648 to 2147483647, got 0 to 4294967297",
        ),
        (
            [0, 1],
            [0, 2**64 - 1],
            r"image_ids must lie in -9223372036854775808 to .*, got 0 to 18446744073709551615",
        ),
    ],
)
def test_a_shard_refuses_numbers_that_its_columns_would_wrap(
    labels: list[int], ids: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shard_bytes(
            np.zeros((2, 1, 2, 2), dtype=np.uint8), np.array(labels), np.array(ids, dtype=np.uint64)
        )


def test_pixels_are_divided_by_255_once_and_only_from_uint8() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_pixels(images).flatten(), torch.arange(256, dtype=torch.float32) / 255)
    with pytest.raises(AssertionError):
        to_pixels(images.float())


def test_an_unknown_dataset_suggests_the_closest_name() -> None:
    with pytest.raises(
        ValueError, match=r"data\.dataset 'digit' is unknown; did you mean digits\?"
    ):
        dataset_source("digit")


def test_a_mean_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    write_dataset(DATASETS["digits"], storage, rows_per_shard=400)
    manifest = storage.read_json(MANIFEST)
    storage.write_json(MANIFEST, manifest | {"mean": [0.9]})
    with pytest.raises(
        CorruptShardError, match=r"manifest\.json does not match its checksum: .*; restore the file"
    ):
        read_split(storage, "test")


def test_a_manifest_without_checksum_is_read_with_a_warning_and_is_the_same_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage.at(tmp_path)
    made = write_dataset(DATASETS["digits"], storage, rows_per_shard=400)
    assert manifest_hash(read_manifest(storage)) == manifest_hash(made) and not caplog.text
    storage.write_json(MANIFEST, made)
    assert manifest_hash(read_manifest(storage)) == manifest_hash(made)
    assert "manifest.json has no checksum" in caplog.text


@pytest.mark.parametrize("damage", ["{", "[]", "changed", "without checksum"])
def test_a_damaged_part_of_a_preparation_is_made_again(tmp_path: Path, damage: str) -> None:
    """A part holds the sums that the mean comes from."""
    storage = Storage.at(tmp_path)
    made = write_dataset(DATASETS["digits"], storage, rows_per_shard=400)
    name = "parts/train-00000.parquet.json"
    part = storage.read_json(name)
    changed = (
        part | {"sum": [1]}
        if damage == "changed"
        else {key: value for key, value in part.items() if key != SEAL} | {"sum": [1]}
    )
    storage.write(
        name,
        json.dumps(changed).encode()
        if damage.startswith(("changed", "without"))
        else damage.encode(),
    )
    assert write_dataset(DATASETS["digits"], storage, rows_per_shard=400) == made
