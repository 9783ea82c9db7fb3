"""Check that a JSON value has the shape that its readers rely on, before they read it.

A shape is a TypedDict, list[...], dict[str, ...], a union, or str, int, float, bool, dict, list;
tuple[..., ...] is a list of that length.
"""

import math
import types
import typing
from collections.abc import Iterable
from functools import cache
from typing import Any, Union

from sat_ray.utils.bounds import shown

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
    return typing.get_type_hints(shape), shape.__required_keys__


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


def _joined(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
