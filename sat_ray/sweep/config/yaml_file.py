"""Read a config in YAML: one that `SweepConfig.as_yaml` wrote, or one of your own.

Fields that a file leaves out are those of its recipe. Text in the place of a number is read as on
the command line, so 5e-4 and 8/255 are numbers too.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from sat_ray.storage.local_disk import NotAFileError
from sat_ray.storage.s3_path import read_text
from sat_ray.storage.sealed import SEAL
from sat_ray.storage.uris import check_place
from sat_ray.sweep.config import Recipe, SweepConfig
from sat_ray.sweep.config.stored import code_named
from sat_ray.utils.bounds import as_float, fault, shown
from sat_ray.utils.import_string import check_confirmed, stored_names
from sat_ray.utils.names import RENAMED, check_name, suggest
from sat_ray.utils.serialization import to_json
from sat_ray.utils.settings_json import from_json

MOST_BYTES = 16 * 1024**2  # of a config; one that a sweep wrote has some kilobytes

FIELDS = (
    "sat-ray sweep --dry-run lists all fields, and options such as --name and --storage stand on "
    "the command line"
)


def read_config(path: str, recipes: Mapping[str, Recipe]) -> SweepConfig:
    """Read the config in a file, a local path or s3:// URI.

    Raises ValueError in one line that names the file and the field; UnconfirmedCodeError where it
    names code that no person named.
    """
    given = _loaded(path)
    given.pop(SEAL, None)  # of a config.json, which is YAML too
    if "recipe" not in given:
        raise ValueError(
            f"{path}: recipe is missing; name the one that the other values come from, for example "
            "recipe: digits"
        )
    recipe = check_name(given["recipe"], recipes, field=f"{path}: recipe")
    base = to_json(recipes[recipe]())
    kinds = _kinds(SweepConfig)
    values = {
        name: _checked(path, name, one, kinds)
        for name, one in _fields(given).items()
        if one != {} or not _is_section(name, kinds)
    }
    check_confirmed(code_named(given), source=path)
    try:
        with stored_names():
            config: SweepConfig = from_json(SweepConfig, _replaced(base, values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def _loaded(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; ValueError where there is none."""
    import yaml  # only here: most commands read no YAML

    text = _text(path)
    try:
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        # an alias may stand for more than memory holds
        repeated = "" if aliased else _repeated(yaml.compose(text))
        value = None if aliased else yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise ValueError(f"{path} is no YAML (line {line}: {error.problem}){hint}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML ({type(error).__name__})") from None
    except ValueError as error:  # a date or a number that is none
        raise ValueError(f"{path} has a value that cannot be read ({error})") from None
    if aliased:
        raise ValueError(f"{path}: aliases (*name) are not read; write the value twice")
    if repeated:
        raise ValueError(f"{path}: field {repeated} is there twice; remove one")
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} must hold the fields of a config, got {_shown(value)}; give a sweep's "
            "config.yaml, or write fields such as recipe: digits"
        )
    return value


def _shown(value: Any) -> str:
    """Spell a YAML value for a message: 3.0 is no whole number, and null is nothing."""
    if value is None:
        return "nothing"
    return repr(value) if isinstance(value, float) else shown(value)


def _text(path: str) -> str:
    """Return the text of a file; ValueError where it cannot be read."""
    check_place(path, field="--config")
    try:
        return read_text(path, most=MOST_BYTES)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text; give a config.yaml") from None
    except NotAFileError as error:
        raise ValueError(f"--config {path} cannot be read ({error})") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(f"--config {path} cannot be read ({reason})") from None


def _repeated(node: Any, prefix: str = "") -> str:
    """Return the dotted name of the first field that a mapping holds twice, "" for none.

    node: of yaml.compose, whose readers keep the last of two without a word.
    """
    seen: set[str] = set()
    if getattr(node, "id", "") != "mapping":
        return ""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if name in seen:
            return name
        seen.add(name)
        if found := _repeated(value, f"{name}."):
            return found
    return ""


def _kinds(owner: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field, with its bounds, by dotted name."""
    hints = typing.get_type_hints(owner, include_extras=True)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(owner):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= _kinds(kind, f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = kind
    return found


def _fields(value: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return what a file holds by dotted name, an empty mapping as it is."""
    found: dict[str, Any] = {}
    for name, one in value.items():
        inside = isinstance(one, dict) and one
        found |= _fields(one, f"{prefix}{name}.") if inside else {f"{prefix}{name}": one}
    return found


def _is_section(name: str, kinds: Mapping[str, Any]) -> bool:
    return any(one.startswith(f"{name}.") for one in kinds)


def _checked(path: str, name: str, value: Any, kinds: Mapping[str, Any]) -> Any:
    """Return the value of a field as its type; ValueError where it is none or has another name."""
    if name in RENAMED:
        raise ValueError(f"{path}: {name} is now {RENAMED[name]}; write that instead")
    if _is_section(name, kinds):
        raise ValueError(f"{path}: {name} must hold fields of its own, got {_shown(value)}")
    if name not in kinds:
        hint = suggest(name, kinds, otherwise=FIELDS)
        raise ValueError(f"{path}: {name} is no field of a config; {hint}")
    kind = kinds[name]
    found = _read(value, kind)
    if reason := fault(found, kind):
        raise ValueError(f"{path}: {name} must be {reason}, got {_shown(value)}")
    return found


def _read(value: Any, kind: Any) -> Any:
    """Return a YAML value as a value of this type where it is one, else as it is."""
    if isinstance(value, list):
        return tuple(_read(item, kind) for item in value)
    if isinstance(value, str) and _holds_float(kind):
        with contextlib.suppress(ValueError):
            return as_float(value)
    return value


def _holds_float(kind: Any) -> bool:
    return kind is float or any(map(_holds_float, typing.get_args(kind)))


def _replaced(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested fields with those of dotted names replaced."""
    for name, value in values.items():
        section, _, last = name.rpartition(".")
        part = base[section] if section else base
        part[last] = to_json(value)
    return base
