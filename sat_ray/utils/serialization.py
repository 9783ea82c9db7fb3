"""Write values as JSON, and hash them."""

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any

from sat_ray.utils.bounds import FARTHEST
from sat_ray.utils.names import check_name


def sha256(data: bytes) -> str:
    """Return the hex digest that records and manifests quote."""
    return hashlib.sha256(data).hexdigest()


def json_bytes(value: Any) -> bytes:
    """Spell a JSON value the same way every time: sorted keys, indented, newline at the end."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def parse_json(data: bytes) -> Any:
    """Return the JSON value in a file's bytes.

    Raises ValueError, a sentence without its subject, where there is none.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("is no JSON (its values are nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"is no JSON ({error})") from None


def to_json(value: Any) -> Any:
    """Turn settings into plain JSON values, the same for equal settings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are one setting and must have one hash
    return value


def from_json(kind: Any, value: Any) -> Any:
    """Rebuild settings of a type from `to_json`.

    Raises ValueError naming a field that is unknown, missing or of another type.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _settings_from_json(kind, value)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(from_json(typing.get_args(kind)[0], item) for item in value)
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and value is not None:
        return from_json(next(k for k in typing.get_args(kind) if k is not type(None)), value)
    # whatever else is wrong, the settings themselves refuse
    exact = kind is float and type(value) is int and abs(value) <= FARTHEST
    return float(value) if exact else value


def _settings_from_json(kind: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{kind.__name__} must be a JSON object, got a {type(value).__name__}")
    hints = typing.get_type_hints(kind)
    for name in value:
        check_name(name, hints, field=f"field of {kind.__name__}")
    for field_ in dataclasses.fields(kind):
        required = (
            field_.default is dataclasses.MISSING and field_.default_factory is dataclasses.MISSING
        )
        if required and field_.name not in value:
            raise ValueError(f"field {field_.name} of {kind.__name__} is missing")
    return kind(**{name: from_json(hints[name], item) for name, item in value.items()})


def content_hash(value: Any) -> str:
    """Return the sha256 of a JSON value."""
    return hashlib.sha256(json_bytes(to_json(value))).hexdigest()


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested settings into dotted names.

    {"training": {"epochs": 5}} becomes {"training.epochs": 5}.
    """
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= (
            flatten(item, f"{prefix}{name}.")
            if isinstance(item, dict)
            else {f"{prefix}{name}": item}
        )
    return flat
