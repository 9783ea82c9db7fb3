"""Settle what a sweep's folder holds, when the sweep starts.

Temporary files, and models and shards that no record names, are what killed attempts left: they are
removed. A whole model that no record names may be one whose record a person moved away. It goes
only where a record names the same weights elsewhere. Records whose outcomes are gone are moved
aside, so that they are computed again.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from sat_ray.storage.sealed import read_sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.records.store import STATE, SUPERSEDED, Records, Stage, attempt_began
from sat_ray.sweep.tasks import EVALUATE, SEARCH, STRONG, TRAIN

# An attempt writes its files when its work is done; a record that does not follow within an hour
# never will.
LIVING_SECONDS = 3600.0
PARTS = f"{STATE}/parts"
SHOWN = 3


def remove_leftovers(
    storage: Storage, *, say: Callable[[str], None] = lambda sentence: None
) -> list[str]:
    """Remove what no record of a sweep names and no living attempt writes; return the paths.

    The caller holds the sweep, so that no other driver starts attempts meanwhile. say: called with
    a sentence on what is kept for a person to decide. Raises ValueError where a record is damaged.
    """
    removed = storage.remove_abandoned()
    records = Records(storage)
    for stage in (SEARCH, TRAIN):
        folders, whole = _models_without_record(records, stage)
        for folder in folders:
            storage.discard_folder(folder)
            removed.append(folder)
        if whole:
            say(
                f"models without a record are kept, {len(whole)} in checkpoints/{stage.name}: "
                f"{', '.join(folder.rpartition('/')[2] for folder in whole[:SHOWN])}; put their "
                "records back, or remove the folders"
            )
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


def _models_without_record(records: Records, stage: Stage) -> tuple[list[str], list[str]]:
    """Return the folders of old attempts that no record names.

    First those without a model of their own, then those with one.
    """
    place = f"checkpoints/{stage.name}"
    folders = [f"{place}/{name}" for name in _old(records.storage.folders(place))]
    if not folders:
        return [], []
    payloads = list(_payloads(records, stage))
    known = {None, *(one.get("sha256") for one in payloads)}
    unnamed = sorted(set(folders) - {one.get("path") for one in payloads})
    whole = [folder for folder in unnamed if _weights_in(records.storage, folder) not in known]
    return [folder for folder in unnamed if folder not in whole], whole


def _weights_in(storage: Storage, folder: str) -> str | None:
    """Return the sha256 of the weights in a model's folder, None where no model was written.

    "" where its description cannot be read.
    """
    try:  # it is written after the weights
        return str(storage.read_object(f"{folder}/model.json").get("sha256", ""))
    except FileNotFoundError:
        return None
    except ValueError:
        return ""


def _payloads(records: Records, stage: Stage) -> Iterator[dict[str, Any]]:
    """Yield what the records of a stage hold, those that were moved aside too."""
    yield from (record.payload for record in records.each(stage))
    for aside in records.storage.folders(SUPERSEDED):
        folder = f"{SUPERSEDED}/{aside}/{stage.name}"
        for name in records.storage.names(folder):
            # what was moved aside because it is damaged names nothing
            if (payload := _payload_of(records.storage, f"{folder}/{name}")) is not None:
                yield payload


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
        held = [_payload_of(records.storage, path) for path in found]
        named = {one.get("path") if one is not None else None for one in held}
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


def _payload_of(storage: Storage, path: str) -> dict[str, Any] | None:
    """Return what a record holds, None where it cannot be read."""
    try:
        payload = read_sealed(storage, path).get("payload")
    except ValueError:
        return None
    return payload if isinstance(payload, dict) else None
