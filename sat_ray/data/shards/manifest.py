"""What the manifest of a prepared dataset must say before anything is read by it."""

import hashlib
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from sat_ray.data.split_ids import SPLITS
from sat_ray.storage.json_shape import misfit
from sat_ray.storage.sealed import read_perhaps_sealed
from sat_ray.storage.store import Storage
from sat_ray.utils.bounds import shown
from sat_ray.utils.serialization import json_bytes

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
REMEDY = "restore the file, or move the dataset folder away and prepare it again"
LONGEST_SIDE = 65_536  # no image file has more
ENTRY = ("file", "split", "rows", "bytes", "sha256")  # what the manifest says about a shard


class CorruptShardError(ValueError):
    """A shard is missing or is not what the manifest says, or the manifest itself is damaged."""


def fault(manifest: Any) -> str:
    """Return what is wrong with a manifest as it was read from JSON; "" where nothing is.

    The text names the field, what it must be, and the value.
    """
    shape, names, splits, shards = (
        manifest.get(field) for field in ("shape", "class_names", "splits", "shards")
    )
    if not _is_shape(shape):
        allowed = f"channels, height and width, whole numbers from 1 to {LONGEST_SIDE}"
        return f"shape must be {allowed}, got {_shown(shape)}"
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        allowed = "a list of texts, empty where they are unknown"
        return f"class_names must be {allowed}, got {_shown(names)}"
    if not isinstance(splits, dict) or not all(_is_count(count) for count in splits.values()):
        return f"splits must be the number of images of each split, got {_shown(splits)}"
    if not isinstance(shards, list) or not shards:
        return f"shards must be a list of at least one shard, got {_shown(shards)}"
    for number, shard in enumerate(shards):
        if not _is_entry(shard):
            allowed = f"have {', '.join(ENTRY)}, rows >= 1"
            return f"shards[{number}] must {allowed}, got {_shown(shard)}"
    return _miscounted(splits, shards) or misfit(manifest, _Others)


class _Corrupt(TypedDict):
    image: str
    reason: str


class _Others(TypedDict):
    """What is read of a manifest besides its images."""

    dataset: str
    mean: NotRequired[list[float]]
    std: NotRequired[list[float]]
    encoding: NotRequired[str]
    corrupt: NotRequired[list[_Corrupt]]
    enlarged: NotRequired[int]
    test_images: NotRequired[dict[str, Any]]


def training_fault(manifest: Mapping[str, Any]) -> str:
    """Return what a manifest lacks that training needs; "" where it lacks nothing."""
    if missing := [name for name in SPLITS if name not in manifest["splits"]]:
        return f"splits.{missing[0]} is missing"
    channels = manifest["shape"][0]
    for name in ("mean", "std"):
        if len(values := manifest.get(name, [])) != channels:
            return f"{name} must have a number for each of {channels} channels, got {values}"
    return ""


def _miscounted(splits: Mapping[str, int], shards: list[dict[str, Any]]) -> str:
    for split in sorted({*splits, *(shard["split"] for shard in shards)}):
        held = sum(shard["rows"] for shard in shards if shard["split"] == split)
        stated = splits.get(split, 0)
        if held != stated:
            return f"splits.{split} must be {held}, the rows of its shards, got {stated}"
    return ""


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) == 3
        and all(_is_count(side) and 1 <= side <= LONGEST_SIDE for side in shape)
    )


def _is_entry(shard: Any) -> bool:
    if not isinstance(shard, dict) or not all(
        isinstance(shard.get(key), str) and shard[key] for key in ("file", "split", "sha256")
    ):
        return False
    return _is_count(shard.get("rows")) and shard["rows"] > 0 and _is_count(shard.get("bytes"))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0  # JSON's true is an int to Python


def _shown(value: Any) -> str:
    return "nothing" if value is None else shown(value)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Return the content hash of a dataset: it covers every shard's checksum."""
    return hashlib.sha256(json_bytes(manifest)).hexdigest()


def read_manifest(storage: Storage) -> dict[str, Any]:
    """Read the manifest of a dataset.

    Raises CorruptShardError naming the file where it is damaged, changed or of another schema
    version.
    """
    place = storage.full(MANIFEST)
    try:
        manifest = read_perhaps_sealed(storage, MANIFEST)
    except ValueError as error:
        raise CorruptShardError(f"{place} {error}; {REMEDY}") from None
    if (version := manifest.get("schema_version")) != SCHEMA_VERSION:
        raise CorruptShardError(
            f"{place} must have schema version {SCHEMA_VERSION}, got {version}; prepare it again"
        )
    if found := fault(manifest):
        raise CorruptShardError(f"{place}: {found}; {REMEDY}")
    return manifest
