"""Write values as JSON, and hash them; `settings_json` reads settings back."""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import Any


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


def fields_in_use(settings: Any, *, added: Collection[str]) -> dict[str, Any]:
    """Return the fields of settings by name, without those of `added` that have their default.

    added: fields that came after the first records and checkpoints were written, whose keys and
    contents so stay what they were.
    """
    return {
        field.name: value
        for field in dataclasses.fields(settings)
        if (value := getattr(settings, field.name)) != field.default or field.name not in added
    }


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
