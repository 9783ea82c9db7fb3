"""Training images that changed after they were prepared: noticed before the old shards are used.

A dataset that is known by its name and has its official number of images is what it is. An image
folder, an .npz file, what a user's function returns and a part of a known dataset are known by
their place alone, so a fingerprint lies beside their shards: of pixels and labels where they were
in memory, else of the names, sizes and times of the files.
"""

import functools
import hashlib
import os
from dataclasses import replace
from typing import Any

import numpy as np

from sat_ray.data.sources.base import PATH, Listing, Place, Raw, Source, UnusableImagesError
from sat_ray.storage.s3_path import folder_at
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import SCHEME
from sat_ray.utils.import_string import is_reference
from sat_ray.utils.names import printable
from sat_ray.utils.serialization import json_bytes

SOURCE = "source.json"
COUNTS = ("classes", "images")


class ChangedDataError(ValueError):
    """The images are others than those that were prepared."""


def stamped(found: Listing) -> Listing:
    """Return a listing whose places of this machine have the size and time of their files."""

    @functools.cache
    def stamp(path: str) -> str:
        about = os.stat(path)
        return f"{about.st_size}:{about.st_mtime_ns}"

    def with_stamp(place: Place) -> Place:
        if place.stamp or place.path.startswith(SCHEME):
            return place
        return replace(place, stamp=stamp(place.path))

    return replace(found, images=[with_stamp(place) for place in found.images])


def describe_source(found: Raw | Listing) -> dict[str, Any]:
    """Return, as JSON, what tells these images from others; a listing must be stamped."""
    digest = hashlib.sha256(found.labels.tobytes())
    held_out = {split: ids.tolist() for split, ids in sorted(found.held_out.items())}
    digest.update(json_bytes([[printable(name) for name in found.class_names], held_out]))
    if isinstance(found, Raw):
        digest.update(repr(found.images.shape).encode())
        digest.update(np.ascontiguousarray(found.images).data)
    else:
        for place in found.images:
            digest.update(repr((place.name, place.offset, place.length, place.stamp)).encode())
    return {
        "fingerprint": digest.hexdigest(),
        "images": len(found.labels),
        "classes": len(found.class_names),
    }


def note_source(source: Source, found: Raw | Listing, storage: Storage) -> None:
    """Write a fingerprint of the images beside the shards, where only a place identifies them."""
    by_place = source.anonymous or is_reference(source.name)
    if by_place or len(found.labels) != source.images:
        storage.write_json(SOURCE, describe_source(found))


def check_unchanged(source: Source, storage: Storage, *, path: str, field: str = PATH) -> None:
    """Raise ChangedDataError where the images are others than those in the shards.

    Images that are not there any more are not needed; shards without a fingerprint are taken as
    they are. field: setting of the path, for messages.
    """
    if not storage.exists(SOURCE) or source.needs(path):
        return
    try:
        if path and not folder_at(path).exists():
            return
        found = source.open(path, field=field)
    except OSError:
        return  # a server or a disk that is away now
    except ValueError as error:
        if is_reference(source.name) and not isinstance(error, UnusableImagesError):
            return  # a function may need what is not there any more
        raise ChangedDataError(f"{error}; {_remedy(storage)}") from None
    then = _noted(storage)
    now = describe_source(stamped(found) if isinstance(found, Listing) else found)
    if now != then:
        what = f"{field} {path}" if path else f"data.dataset {source.name}"
        raise ChangedDataError(
            f"{what} has changed since it was prepared ({_difference(then, now)}); "
            f"{_remedy(storage)}"
        )


def _noted(storage: Storage) -> dict[str, Any]:
    """Return the fingerprint beside the shards; ChangedDataError where it is damaged."""
    try:
        then = storage.read_object(SOURCE)
    except ValueError as error:
        raise ChangedDataError(f"{error}; {_remedy(storage)}") from None
    if not all(isinstance(then.get(field), int) for field in COUNTS):
        raise ChangedDataError(
            f"{storage.full(SOURCE)} lacks the number of {' or of '.join(COUNTS)}; "
            f"{_remedy(storage)}"
        )
    return then


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    told = [
        f"{then[field]:,} {field} then, {now[field]:,} now"
        for field in COUNTS
        if then[field] != now[field]
    ]
    return "; ".join(told) or "as many images, but other files or pixels"


def _remedy(storage: Storage) -> str:
    return f"put back what was there, or move {storage.uri} away and prepare it again"
