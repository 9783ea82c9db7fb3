"""Settle what a sweep's folder holds, when the sweep starts.

Temporary files, and models and shards that no record names, are what killed attempts left: they are
removed. Records whose outcomes are gone are moved aside, so that they are computed again.
"""

import time
from collections.abc import Iterator

from sat_ray.storage.sealed import read_sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import STATE, SUPERSEDED, Records, Stage, attempt_began
from sat_ray.sweep.tasks import EVALUATE, SEARCH, STRONG, TRAIN

# An attempt writes its files when its work is done; a record that does not follow within an hour
# never will.
LIVING_SECONDS = 3600.0
PARTS = f"{STATE}/parts"


def remove_leftovers(storage: Storage) -> list[str]:
    """Remove what no record of a sweep names and no living attempt writes; return the paths.

    The caller holds the sweep, so that no other driver starts attempts meanwhile. Raises ValueError
    where a record is damaged.
    """
    removed = storage.remove_abandoned()
    records = Records(storage)
    for stage in (SEARCH, TRAIN):
        folders = [
            f"checkpoints/{stage.name}/{name}"
            for name in _old(storage.folders(f"checkpoints/{stage.name}"))
        ]
        kept = set(_named(records, stage)) if folders else set()
        for folder in (folder for folder in folders if folder not in kept):
            storage.discard_folder(folder)
            removed.append(folder)
    for path in list(_parts_without_record(records)):
        storage.discard(path)
        removed.append(path)
    return removed


def supersede_without_outcomes(records: Records) -> int:
    """Move the records of evaluated shards aside whose outcomes are gone, and return their number.

    Names are compared, which begin with the keys; no record is read that has its outcomes. What
    validation found is in its records, so its outcomes are not needed.
    """
    there = {name.partition("-")[0] for name in records.storage.names(PARTS)}
    gone = [
        record
        for stage in (EVALUATE, STRONG)
        for key in records.keys(stage)
        if key not in there and (record := records.find(stage, key)) is not None
    ]
    for record in gone:
        records.supersede(record)
    return len(gone)


def _old(names: list[str]) -> list[str]:
    began = ((name, attempt_began(name)) for name in names)
    return [
        name
        for name, moment in began
        if moment is not None and time.time() - moment > LIVING_SECONDS
    ]


def _named(records: Records, stage: Stage) -> Iterator[str]:
    """Yield the folders that the records of a stage name, those that were moved aside too."""
    yield from (str(record.payload["path"]) for record in records.each(stage))
    for aside in records.storage.folders(SUPERSEDED):
        folder = f"{SUPERSEDED}/{aside}/{stage.name}"
        for name in records.storage.names(folder):
            # what was moved aside because it is damaged names nothing
            if (path := _path_named_by(records.storage, f"{folder}/{name}")) is not None:
                yield path


def _parts_without_record(records: Records) -> Iterator[str]:
    """Yield the parts of evaluations that no record of any stage names, moved aside or not.

    The record of a shard with one part is not read, it can name no other. Where a record cannot be
    read, all parts of its key stay.
    """
    by_key: dict[str, list[str]] = {}
    for name in _old(records.storage.names(PARTS)):
        by_key.setdefault(name.partition("-")[0], []).append(f"{PARTS}/{name}")
    committed = _records_by_key(records.storage) if by_key else {}
    for key, paths in by_key.items():
        found = committed.get(key, [])
        if len(paths) == len(found) == 1:
            continue
        named = {_path_named_by(records.storage, path) for path in found}
        if None not in named:
            yield from (path for path in paths if path not in named)


def _records_by_key(storage: Storage) -> dict[str, list[str]]:
    """Return the paths of all records, of every stage that there is, by their keys."""
    states = [STATE, *(f"{SUPERSEDED}/{aside}" for aside in storage.folders(SUPERSEDED))]
    by_key: dict[str, list[str]] = {}
    for state in states:
        for stage in storage.folders(state):
            for name in storage.names(f"{state}/{stage}"):
                if name.endswith(".json"):
                    by_key.setdefault(name.removesuffix(".json"), []).append(
                        f"{state}/{stage}/{name}"
                    )
    return by_key


def _path_named_by(storage: Storage, path: str) -> str | None:
    """Return the path that a record names, None where the record cannot be read."""
    try:
        return str(read_sealed(storage, path)["payload"]["path"])
    except (ValueError, KeyError, TypeError):
        return None
