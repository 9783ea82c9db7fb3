"""The values that fields of settings may have.

Each number carries its bounds in its type, and one function checks every field.

    steps: Annotated[int, Bounds(1, 1_000_000)] = 200
    rate: Annotated[float, Bounds(0, 1000, above=True)] = 0.2      greater than 0

A number without bounds of its own must be finite and no larger than FARTHEST.
"""

import dataclasses
import functools
import re
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

FARTHEST = 10.0**12
MOST_WORKERS = 65_536  # and the CPUs or GPUs of each


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest value of a number.

    above, below: whether these two themselves are left out.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def hold(self, value: float) -> bool:
        """Return whether a number is inside; NaN never is."""
        enough = value > self.low if self.above else value >= self.low
        return enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low, high = (_spelled(edge) for edge in (self.low, self.high))
        if not (self.above or self.below):
            return f"from {low} to {high}"
        least = "greater than" if self.above else "at least"
        most = "less than" if self.below else "at most"
        return f"{least} {low} and {most} {high}"


Count = Annotated[int, Bounds(1, 10**9)]  # of images or rows: no data set comes near it
Epochs = Annotated[int, Bounds(1, 100_000)]
Steps = Annotated[int, Bounds(1, 1_000_000)]  # of an attack; its restarts and queries too
# an L2 ball around an image of 4096 x 4096 has a radius of thousands
StepSize = Annotated[float, Bounds(0, 1_000_000, above=True)]
Slots = Annotated[int, Bounds(1, 65_536)]
Width = Annotated[int, Bounds(1, 4096)]
Workers = Annotated[int, Bounds(1, MOST_WORKERS)]
Gpus = Annotated[float, Bounds(0, MOST_WORKERS)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]  # the seeds that every library takes
Share = Annotated[float, Bounds(0, 1)]
BelowOne = Annotated[float, Bounds(0, 1, below=True)]


def check_fields(settings: Any, *, prefix: str) -> None:
    """Raise ValueError, in one line, for the first field that is out of type or out of bounds.

    prefix: put before the field's name, "evaluation." or "--"; after "--" underscores are written
    as hyphens.
    """
    owner: Any = type(settings)
    for name, kind in _kinds(owner).items():
        if reason := fault(getattr(settings, name), kind):
            field = name.replace("_", "-") if prefix == "--" else name
            raise ValueError(
                f"{prefix}{field} must be {reason}, got {shown(getattr(settings, name))}"
            )


def fault(value: Any, kind: Any, bounds: Bounds | None = None) -> str:
    """Return what a value of this type must be, "" where it is.

    bounds: of its numbers, where the type around it names them.
    """
    origin = typing.get_origin(kind)
    parts = typing.get_args(kind)
    if origin is Annotated:
        return fault(
            value, parts[0], next((mark for mark in parts[1:] if isinstance(mark, Bounds)), bounds)
        )
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return ""
        return fault(value, next(part for part in parts if part is not type(None)), bounds)
    if origin is tuple:
        return _fault_of_tuple(value, parts[0], bounds)
    if origin is Literal:
        return "" if value in parts else f"one of {', '.join(map(str, parts))}"
    if kind in (int, float):
        return _fault_of_number(value, kind, bounds or Bounds(-FARTHEST, FARTHEST))
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    return "" if kind is not str or isinstance(value, str) else "a text"


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields: Any = kind
    return {field.name: hints[field.name] for field in dataclasses.fields(fields)}


def _fault_of_number(value: Any, kind: type, bounds: Bounds) -> str:
    whole = kind is int
    typed = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if typed and bounds.hold(value):
        return ""
    return f"{'a whole number' if whole else 'a number'} {bounds}"


def _fault_of_tuple(value: Any, kind: Any, bounds: Bounds | None) -> str:
    if not isinstance(value, tuple):
        return "a list"
    return next(
        (
            f"a list of which each is {reason}"
            for item in value
            if (reason := fault(item, kind, bounds))
        ),
        "",
    )


def _spelled(edge: float) -> str:
    # no commas: lines are broken at them
    return f"{edge:.0f}" if edge == round(edge) and abs(edge) <= FARTHEST else f"{edge:g}"


def as_float(word: str) -> float:
    """Return the number that a word spells, k/n included; ValueError where it spells none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)/(\d+)", word)
    if match is None or not float(match[2]):
        return float(word)
    return float(match[1]) / float(match[2])


def shown(value: Any) -> str:
    """Spell a value for a message, cut where it is long."""
    if isinstance(value, float):
        text = f"{value:.12g}"
    else:
        text = str(value) if isinstance(value, (int, tuple)) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
