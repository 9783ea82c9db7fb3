"""What every stage of a sweep is given."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sat_ray.storage.sealed import read_sealed, sealed
from sat_ray.storage.store import Storage
from sat_ray.storage.uris import LOCAL_PAGES
from sat_ray.sweep.records.store import STATE, Records, attempt_name
from sat_ray.utils.serialization import json_bytes

if TYPE_CHECKING:
    from sat_ray.sweep.config import SweepConfig

IDENTITY = f"{STATE}/identity.json"


@dataclass(frozen=True)
class Sweep:
    """What every stage is given.

    root: the storage that sweeps share; storage: this sweep's own folder; command: how it was
    called; pages: address of MLflow's pages.
    """

    config: "SweepConfig"
    name: str
    root: Storage
    storage: Storage
    command: tuple[str, ...]
    pages: str = LOCAL_PAGES

    @property
    def records(self) -> Records:
        """Return the sweep's records."""
        return Records(self.storage)

    @property
    def identity(self) -> str:
        """Return what names this sweep wherever its folder lies.

        The tracker's runs carry it, so that a moved sweep finds its runs again.
        """
        self.storage.commit(IDENTITY, json_bytes(sealed({"identity": attempt_name()})))
        found = read_state(self.storage, IDENTITY)
        return str(found["identity"])


def read_state(storage: Storage, path: str) -> dict[str, Any]:
    try:
        return read_sealed(storage, path)
    except ValueError as error:
        raise ValueError(f"{storage.full(path)} {error}; move it away and run again") from None
