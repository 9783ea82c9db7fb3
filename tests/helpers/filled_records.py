"""Records that say what a test is about, and something empty in every other field."""

import types
import typing
from typing import Any, Union

from sat_ray.sweep.records.store import Stage


def filled(
    stage: Stage, payload: dict[str, Any], inputs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return payload and inputs for `Records.commit`, with every field that the stage must have."""
    shapes = typing.get_type_hints(stage.shape)
    given = {"payload": payload, "inputs": inputs or {}}
    return {name: _joined(_empty(shapes[name]), given[name]) for name in given}


def _empty(shape: Any) -> Any:
    if typing.is_typeddict(shape):
        hints = typing.get_type_hints(shape)
        return {name: _empty(hints[name]) for name in hints if name in shape.__required_keys__}
    origin = typing.get_origin(shape) or shape
    if origin is tuple:
        return [_empty(part) for part in typing.get_args(shape)]
    return None if origin in (Union, types.UnionType) else origin()


def _joined(empty: Any, given: Any) -> Any:
    if not (isinstance(empty, dict) and isinstance(given, dict)):
        return given
    return empty | {name: _joined(empty.get(name), one) for name, one in given.items()}
