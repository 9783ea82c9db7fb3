"""One driver per sweep.

On a local disk the kernel holds a lock and drops it when the process ends. On S3 the driver renews
its lease by heartbeats.
"""

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from sat_ray.storage.store import Storage
from sat_ray.sweep.records.renewed_lease import (
    Lease,
    holds,
    latest,
    refused,
    renewed_lease,
)

LOCK = "state/driver.json"  # on a local disk
OWNER = "state/driver-owner.json"  # on a local disk
LOOKS = 20  # at a lock; one that is held at every look is a driver's
PAUSE_SECONDS = 0.05  # between two looks
HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0


@dataclass(frozen=True)
class Holder:
    """The driver that took a sweep last.

    alive: whether it still holds the sweep, None where this machine cannot find out.
    """

    host: str
    pid: int
    alive: bool | None


@contextmanager
def driver_lease(
    storage: Storage, *, heartbeat: float = HEARTBEAT_SECONDS, expiry: float = EXPIRY_SECONDS
) -> Iterator[Lease]:
    """Hold the sweep for this process; raise SecondDriverError where another process holds it.

    heartbeat: seconds between renewals (S3 only).
    expiry: seconds after which a silent driver counts as dead (S3 only).
    """
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "token": uuid.uuid4().hex,
        "storage": storage.uri,  # a copied sweep is held by no driver
    }
    if storage.is_local:
        with _file_lock(storage, mine):
            yield Lease(storage)
    else:
        with renewed_lease(storage, mine, heartbeat=heartbeat, expiry=expiry) as lease:
            yield lease


@contextmanager
def _file_lock(storage: Storage, mine: dict[str, Any]) -> Iterator[None]:
    path = storage.full(LOCK)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a+") as handle:
        if not _taken(handle):
            raise refused(storage, _local_owner(storage))
        storage.write_json(OWNER, mine)
        yield


def _taken(handle: TextIO) -> bool:
    """Take the lock of a driver; try again for a second, because `read_lease` holds it briefly.

    Looks are counted, not seconds: a machine that stands still for some seconds stops both.
    """
    for _ in range(LOOKS):
        if _locks(handle, fcntl.LOCK_EX):
            return True
        time.sleep(PAUSE_SECONDS)
    return False


def _locks(handle: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _local_owner(storage: Storage) -> dict[str, Any]:
    try:
        return storage.read_object(OWNER)
    except (FileNotFoundError, ValueError):
        return {}


def read_lease(storage: Storage, *, patience: float = HEARTBEAT_SECONDS + 2.0) -> Holder | None:
    """Return the driver that holds a sweep, and change nothing.

    Return None where no driver took the sweep, or the last one released it (S3 only).
    patience: seconds to wait for a heartbeat before a driver counts as silent (S3 only).
    """
    owner = _local_owner(storage) if storage.is_local else latest(storage)[1]
    if not holds(storage, owner):
        return None
    local = storage.is_local
    alive = _locked(storage.full(LOCK), owner) if local else _beats(storage, owner, patience)
    return Holder(str(owner.get("host", "?")), int(owner.get("pid", 0)), alive)


def _locked(path: str, owner: dict[str, Any]) -> bool | None:
    """Say whether a driver holds the lock file: a shared lock is then refused."""
    try:
        with open(path) as handle:
            held = not _locks(handle, fcntl.LOCK_SH)
    except OSError:  # no lock file, no permission, or a disk without locks
        return None
    here = owner.get("host") == socket.gethostname()
    # Not every shared disk passes locks on from one machine to another.
    return held or (False if here else None)


def _beats(storage: Storage, first: dict[str, Any], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (now := latest(storage)[1]) != first:
            return holds(storage, now)
    return False
