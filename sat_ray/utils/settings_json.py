"""Read settings, which are dataclasses, back from the JSON values that `to_json` made of them."""

import dataclasses
import types
import typing
from typing import Any

from sat_ray.utils.bounds import FARTHEST
from sat_ray.utils.names import check_name


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
