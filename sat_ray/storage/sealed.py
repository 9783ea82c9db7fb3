"""JSON objects with a checksum of their own content: reading one detects a change or damage.

checksum = sha256 of the object without that field, spelled as `json_bytes` spells it
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from sat_ray.storage.store import Storage
from sat_ray.utils.serialization import json_bytes, parse_json

SEAL = "checksum"
CHANGED = "does not match its checksum: it was changed or is damaged"
UNSEALED = "has no checksum: an earlier version of sat_ray wrote it"


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its checksum, as it will be read back."""
    plain = json.loads(json_bytes(dict(value)))
    return {**plain, SEAL: checksum(plain)}


def checksum(value: Mapping[str, Any]) -> str:
    """Return the sha256 of a JSON object without its own checksum."""
    return hashlib.sha256(
        json_bytes({name: item for name, item in value.items() if name != SEAL})
    ).hexdigest()


def seal_fault(value: Any) -> str:
    """Return what is wrong with an object that was read: UNSEALED, CHANGED or its type.

    Returns "" where it is what was written.
    """
    if not isinstance(value, dict):
        return f"must hold a JSON object, got a {type(value).__name__}"
    if SEAL not in value:
        return UNSEALED
    return "" if value[SEAL] == checksum(value) else CHANGED


def read_sealed(storage: Storage, path: str) -> dict[str, Any]:
    """Read an object and return it without its checksum.

    Raises FileNotFoundError where there is none, and ValueError, a sentence without its subject,
    where it is damaged or has no checksum.
    """
    value = parse_json(storage.read(path))
    if fault := seal_fault(value):
        raise ValueError(fault)
    return _unsealed(value)


def read_perhaps_sealed(
    storage: Storage, path: str, *, required: Callable[[dict[str, Any]], bool] = lambda value: False
) -> dict[str, Any]:
    """Read an object as `read_sealed` does, and warn of one without a checksum.

    required: says whether an object must have a checksum.
    """
    value = parse_json(storage.read(path))
    fault = seal_fault(value)
    if fault and (fault != UNSEALED or required(value)):
        raise ValueError(fault)
    if fault:
        _warn(f"{storage.full(path)} {fault}; whether it was changed since cannot be checked")
    return _unsealed(value)


def _unsealed(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != SEAL}


@cache
def _warn(text: str) -> None:
    logging.getLogger(__name__).warning(text)
