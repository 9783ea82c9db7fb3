"""One driver per sweep. On a local disk the kernel holds the lock and drops it with the process; on S3 a lease is renewed by heartbeats."""

import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_ray.storage.store import Storage
from sat_ray.sweep.records.renewed_lease import (
    Lease,
    SecondDriverError,
    holds,
    latest,
    refused,
    renewed_lease,
)

__all__ = ["Holder", "Lease", "SecondDriverError", "driver_lease", "read_lease"]
LOCK, OWNER = "state/driver.json", "state/driver-owner.json"  # on a local disk
HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0


@dataclass(frozen=True)
class Holder:
    """The driver that took a sweep last. alive: whether it still holds it, None where this machine cannot tell."""

    host: str
    pid: int
    alive: bool | None


@contextmanager
def driver_lease(
    storage: Storage, *, heartbeat: float = HEARTBEAT_SECONDS, expiry: float = EXPIRY_SECONDS
) -> Iterator[Lease]:
    """Hold the sweep for this process; SecondDriverError where another one does.

    heartbeat, expiry: seconds between renewals, and after which a silent driver counts as dead (S3 only).
    """
    mine = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "token": uuid.uuid4().hex,
        "storage": storage.uri,  # a copy of a sweep elsewhere belongs to nobody
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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refused(storage, _local_owner(storage)) from None
        storage.write_json(OWNER, mine)
        yield


def _local_owner(storage: Storage) -> dict[str, Any]:
    try:
        found: dict[str, Any] = storage.read_json(OWNER)
    except (FileNotFoundError, ValueError):
        return {}
    return found


def read_lease(storage: Storage, *, patience: float = HEARTBEAT_SECONDS + 2.0) -> Holder | None:
    """Say which driver holds a sweep without taking or changing anything; None where none has, or the last one let go on S3.

    patience: seconds to wait for a heartbeat before a driver counts as silent (S3 only).
    """
    owner = _local_owner(storage) if storage.is_local else latest(storage)[1]
    if not holds(storage, owner):
        return None
    local = storage.is_local
    alive = _locked(storage.full(LOCK), owner) if local else _beats(storage, owner, patience)
    return Holder(str(owner.get("host", "?")), int(owner.get("pid", 0)), alive)


def _locked(path: str, owner: dict[str, Any]) -> bool | None:
    """Look the lock up in the kernel's table: trying to take it, even for a moment, could turn a driver away."""
    here = owner.get("host") == socket.gethostname()
    try:
        inode = str(os.stat(path).st_ino)
        table = Path("/proc/locks").read_text()
    except FileNotFoundError:
        return None  # no lock file, or no such table on this system
    # device numbers are left out: on overlays and btrfs the table's differ from those of stat
    held = any(
        line.split()[1] == "FLOCK" and line.split()[-3].split(":")[-1] == inode
        for line in table.splitlines()
    )
    return held or (
        False if here else None
    )  # a lock taken on another machine of a shared disk is not in this kernel's table


def _beats(storage: Storage, first: dict[str, Any], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (now := latest(storage)[1]) != first:
            return holds(storage, now)
    return False
