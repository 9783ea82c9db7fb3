"""Read the config of a stored sweep, which may name code that no person named here."""

from typing import Any

from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.storage.sealed import read_perhaps_sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.utils.import_string import check_confirmed, is_reference, stored_names
from sat_ray.utils.names import RENAMED
from sat_ray.utils.settings_json import from_json

CONFIG = "config.json"
REMEDY = "restore the file, or choose another --name or --storage"


def code_named(config: Any) -> list[str]:
    """Return every `module:function` that a stored config names, without making objects of it."""
    search, model, data = (_part(config, name) for name in ("search", "model", "data"))
    activations = [
        word
        for text in _words(search.get("activations"))
        for word in (text, text.rpartition(":")[0])
        if word.partition(":")[0] not in ACTIVATIONS  # relu:x is a mistyped alpha, no module
    ]
    pairs = [word for text in _words(search.get("pairs")) for word in text.split("/")]
    others = _words([model.get("name"), data.get("dataset"), data.get("extra")])
    return sorted({name for name in (*others, *activations, *pairs) if is_reference(name)})


def _part(config: Any, name: str) -> dict[str, Any]:
    """Return a part of a stored config, empty where something else stands there."""
    found = config.get(name) if isinstance(config, dict) else None
    return found if isinstance(found, dict) else {}


def _words(value: Any) -> list[str]:
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def read_config(storage: Storage) -> dict[str, Any]:
    """Return the JSON object of a sweep's config, without its checksum.

    Raises FileNotFoundError where there is none, ValueError where it is damaged or was changed. An
    earlier version wrote none with a checksum: such a file is read with a warning.
    """
    try:
        return read_perhaps_sealed(storage, CONFIG)
    except ValueError as error:
        raise ValueError(f"{storage.full(CONFIG)} {error}; {REMEDY}") from None


def stored_config(storage: Storage) -> SweepConfig:
    """Read the config of the sweep in a folder.

    Raises FileNotFoundError where there is none, UnconfirmedCodeError where it names code that no
    person named, other ValueErrors where it is no config of today.
    """
    source = storage.full(CONFIG)
    value = read_config(storage)
    check_confirmed(code_named(value), source=source)
    return config_of(value, source=source)


def config_of(value: Any, *, source: str) -> SweepConfig:
    """Make a config of the JSON values in `source`; one line where they are none."""
    try:
        with stored_names():
            if renamed := _renamed(value):
                raise ValueError(f"an earlier version wrote it: {renamed}")
            config: SweepConfig = from_json(SweepConfig, value)
    except (ValueError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{source} cannot be read as a sweep's config ({reason}); {REMEDY}"
        ) from None
    return config


def _renamed(value: Any) -> str:
    """Name the fields of a stored config that have another name today; "" where none has."""
    old = [
        name
        for name in RENAMED
        if "." in name and name.partition(".")[2] in _part(value, name.partition(".")[0])
    ]
    return ", ".join(f"{name} is now {RENAMED[name]}" for name in old)
