"""Settle what a sweep's folder holds, when the sweep starts.

Temporary files, and models and shards that no record names, are what killed attempts left: they are
removed. Records whose outcomes are gone are moved aside, so that they are computed again.
"""

import contextlib
import time
from collections.abc import Iterator

from sat_ray.storage.sealed import read_sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import STATE, SUPERSEDED, Records, Stage, attempt_began
from sat_ray.sweep.tasks import EVALUATE, SEARCH, STAGES, STRONG, TRAIN

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
        for name in records.storage.names(f"{SUPERSEDED}/{aside}/{stage.name}"):
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # what was moved aside because it is damaged names nothing
                yield str(
                    read_sealed(records.storage, f"{SUPERSEDED}/{aside}/{stage.name}/{name}")[
                        "payload"
                    ]["path"]
                )


def _parts_without_record(records: Records) -> Iterator[str]:
    """Yield the parts of evaluations that no record names, of whatever stage it is.

    The record of a shard with one part is not read, it can name no other. What a record that was
    moved aside may name stays.
    """
    by_key: dict[str, list[str]] = {}
    for name in _old(records.storage.names(PARTS)):
        by_key.setdefault(name.partition("-")[0], []).append(f"{PARTS}/{name}")
    committed = {key: stage for stage in STAGES for key in records.keys(stage)} if by_key else {}
    aside = set(_keys_aside(records)) if by_key else set()
    for key, paths in by_key.items():
        stage = committed.get(key)
        if key in aside or (stage is not None and len(paths) == 1):
            continue
        record = None if stage is None else records.find(stage, key)
        yield from (path for path in paths if record is None or path != record.payload["path"])


def _keys_aside(records: Records) -> Iterator[str]:
    """Yield the keys of the records that were moved aside."""
    for folder in records.storage.folders(SUPERSEDED):
        for stage in STAGES:
            names = records.storage.names(f"{SUPERSEDED}/{folder}/{stage.name}")
            yield from (name.removesuffix(".json") for name in names)
