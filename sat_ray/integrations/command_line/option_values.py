"""The words after each option of a command: checked by the type of its field, before the parser.

The parser's own messages name Python functions; these name the option, what it takes, and what was
given.
"""

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from sat_ray.utils.bounds import as_float, shown
from sat_ray.utils.names import replacement

_POSITIONAL = get_args(tyro.conf.Positional[str])[1]


MOST_DIGITS = 100  # of an integer; Python itself reads no more than 4,300


class UsageError(ValueError):
    """The command cannot be run as written."""


def option_kinds(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every option of a dataclass instance and of those inside, by dotted name.

    Positional fields are left out: their words belong to no option.
    """
    marked = get_type_hints(type(settings), include_extras=True)
    kinds = get_type_hints(type(settings))
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= option_kinds(value, f"{prefix}{field.name}.")
        elif not is_positional(marked[field.name]):
            found[f"{prefix}{field.name}"] = kinds[field.name]
    return found


def positionals(settings: Any) -> int:
    """Return how many words a command takes that belong to no option."""
    kinds = get_type_hints(type(settings), include_extras=True)
    return sum(is_positional(kinds[field.name]) for field in dataclasses.fields(settings))


def is_positional(kind: Any) -> bool:
    """Return whether a field is written without its name."""
    return get_origin(kind) is Annotated and _POSITIONAL in get_args(kind)


def check_words(words: Sequence[str], kinds: Mapping[str, Any], *, allowed_before: int = 0) -> None:
    """Raise UsageError for the first word that its option does not take.

    words: of a command whose options are all known; kinds: see `option_kinds`; allowed_before:
    positional words that may stand before the first option.
    """
    groups = _grouped(words)
    stray = groups.pop(0)[1]
    if len(stray) > allowed_before:
        raise UsageError(f"{_unexpected(stray[allowed_before])} (all options: --help)")
    for option, values in groups:
        _check_option(option, values, kinds)
    check_dashes(words, kinds)


def check_dashes(words: Sequence[str], kinds: Mapping[str, Any]) -> None:
    """Raise UsageError for a text that begins with one dash: the parser takes it for an option.

    words, kinds: see `check_words`; `--name=-x` is understood.
    """
    option = ""
    for word in words:
        if word.startswith("--") or word == "-h":
            option = word.partition("=")[0]
        elif word.startswith("-") and not option:
            raise UsageError(f"{_unexpected(word)} (all options: --help)")
        elif word.startswith("-") and str in _choices(_one(kinds.get(_field(option)))):
            many = get_origin(kinds[_field(option)]) is tuple
            hint = "" if many else f"; if it is the value, write {option}={word}"
            raise UsageError(
                f"{option} must be followed by a word that does not begin with '-', as options do, "
                f"got {word}{hint}"
            )


def _unexpected(word: str) -> str:
    return f"unexpected word {word!r}: an option begins with --, and its values follow it"


def values_of(words: Sequence[str], option: str) -> list[str]:
    """Return the words that follow an option, [] where it is not given."""
    return [value for name, values in _grouped(words) if name == option for value in values]


def _grouped(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Gather the words after each option; the first group belongs to none."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if word.startswith("--") or word == "-h":
            option, equals, value = word.partition("=")
            groups.append((option, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _field(option: str) -> str:
    return option[2:].replace("-", "_")


def _one(kind: Any) -> Any:
    """Return the type of one value of an option that takes many, else its own type."""
    return get_args(kind)[0] if get_origin(kind) is tuple else kind


def _check_option(option: str, values: Sequence[str], kinds: Mapping[str, Any]) -> None:
    name = _field(option)
    if option in ("-h", "--help"):
        return
    kind = kinds.get(name, bool)  # only a switch has a second spelling, --no-x
    if kind is bool:
        if values:
            raise UsageError(
                f"{option} takes no value, got {values[0]}: "
                f"write {option} alone, or {_opposite(name)}"
            )
        return
    if get_origin(kind) is tuple:
        kind = _one(kind)
    elif not values:
        raise UsageError(f"{option} needs a value: {_named(kind)}")
    elif len(values) > 1:
        raise UsageError(f"{option} takes one value, got {len(values)}: {' '.join(values)}")
    for value in values:
        if not _fits(value, kind):
            hint = _replacement(value, kind)
            raise UsageError(f"{option} must be {_named(kind)}, got {shown(value)}{hint}")


def _replacement(value: str, kind: Any) -> str:
    """Say what to write instead of a value that was removed or is too long; "" for any other."""
    if len(value) > MOST_DIGITS and int in _choices(kind):
        return f"; an integer has at most {MOST_DIGITS} digits"
    known = [
        one for part in _choices(kind) if get_origin(part) is Literal for one in get_args(part)
    ]
    today = replacement(value, known)
    return f"; use {today}, {value} was removed" if today else ""


def _opposite(name: str) -> str:
    section, _, last = name.rpartition(".")
    positive = last.removeprefix("no_")
    other = positive if positive != last else f"no_{last}"
    return "--" + ".".join(filter(None, (section, other))).replace("_", "-")


def _choices(kind: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: those of a union, else the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: str, kind: Any) -> bool:
    return any(_fits_one(value, one) for one in _choices(kind))


def _fits_one(value: str, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is types.NoneType:
        return value == "None"
    if kind is int:
        return re.fullmatch(rf"[+-]?[0-9]{{1,{MOST_DIGITS}}}", value) is not None
    if kind is float:
        return _is_number(value)
    return True


def _is_number(value: str) -> bool:
    try:
        as_float(value)
    except ValueError:
        return False
    return True


def _named(kind: Any) -> str:
    return " or ".join(_named_one(one) for one in _choices(kind))


def _named_one(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    names = {int: "an integer", float: "a number (k/255 may be written)", types.NoneType: "None"}
    return names.get(kind, "a word")


NUMBERS = tyro.constructors.ConstructorRegistry()
"""How the parser reads numbers: k/255 may be written wherever a float is expected."""


@NUMBERS.primitive_rule
def _float_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[float] | None:
    if info.type is not float:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda words: as_float(words[0]),
        is_instance=lambda value: isinstance(value, float | int),
        str_from_instance=lambda value: [str(value)],
    )
