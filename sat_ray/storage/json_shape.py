"""Check that a JSON value has the shape that its readers rely on, before they read it.

A shape is a TypedDict, list[...], dict[str, ...], a union, or str, int, float, bool, dict, list;
tuple[..., ...] is a list of that length, Annotated[..., Bounds(...)] a number between bounds and
RelativePath a text that names a place inside a storage.
"""

import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, NotRequired, Union

from sat_ray.storage.uris import leaves
from sat_ray.utils.bounds import Bounds, shown

NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    tuple: "a list",
    types.NoneType: "null",
}


@dataclass(frozen=True)
class _Relative:
    """What a path inside a storage is."""

    def hold(self, value: str) -> bool:
        return bool(value) and "://" not in value and not leaves(value)

    def __str__(self) -> str:
        return "that is a relative path without '..'"


RelativePath = Annotated[str, _Relative()]


def misfit(value: Any, shape: Any, *, field: str = "") -> str:
    """Return which field of a value has another shape, and what it must be; "" where all fit.

    field: the name of the value itself. What a TypedDict does not name may be anything.
    """
    if typing.is_typeddict(shape):
        return _misfit_of_object(value, shape, field)
    origin = typing.get_origin(shape)
    parts = typing.get_args(shape)
    if origin in (Union, types.UnionType):
        return "" if any(not misfit(value, part) for part in parts) else _must(value, parts, field)
    if origin is Annotated:
        kind, limit = parts
        return misfit(value, kind, field=field) or _beyond(value, kind, limit, field)
    if origin in (list, tuple) and isinstance(value, list):
        kinds = parts if origin is tuple else parts * len(value)
        if len(kinds) != len(value):
            return f"{field} must be a list of {len(kinds)}, got {shown(value)}"
        places = [f"{field}[{place}]" for place in range(len(value))]
        return _first(zip(places, value, kinds, strict=True))
    if origin is dict and isinstance(value, dict):
        return _first((_joined(field, name), item, parts[1]) for name, item in value.items())
    return "" if _fits(value, origin or shape) else _must(value, (origin or shape,), field)


def _misfit_of_object(value: Any, shape: Any, field: str) -> str:
    if not isinstance(value, dict):
        return _must(value, (dict,), field)
    fields, required = _fields(shape)
    missing = [name for name in fields if name in required and name not in value]
    if missing:
        return f"{_joined(field, missing[0])} is missing"
    return _first(
        (_joined(field, name), value[name], kind) for name, kind in fields.items() if name in value
    )


@cache
def _fields(shape: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the shape of every field of a TypedDict, and which fields must be there."""
    hints = typing.get_type_hints(shape, include_extras=True)
    kinds = {name: _unwrapped(kind) for name, kind in hints.items()}
    return kinds, shape.__required_keys__


def _unwrapped(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is NotRequired else kind


def _first(inside: Iterable[tuple[str, Any, Any]]) -> str:
    found = (misfit(item, shape, field=field) for field, item, shape in inside)
    return next(filter(None, found), "")


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind  # JSON's true is an int to Python


def _must(value: Any, kinds: tuple[Any, ...], field: str) -> str:
    wanted = " or ".join(NAMES.get(typing.get_origin(kind) or kind, "an object") for kind in kinds)
    return f"{field or 'it'} must be {wanted}, got {shown(value)}"


def _beyond(value: Any, kind: Any, limit: Bounds | _Relative, field: str) -> str:
    return "" if limit.hold(value) else f"{field} must be {NAMES[kind]} {limit}, got {shown(value)}"


def _joined(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
