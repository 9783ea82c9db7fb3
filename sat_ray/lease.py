"""One driver per sweep. On a local disk the kernel holds the lock and drops it with the process; on S3 a lease is renewed by heartbeats."""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_ray.storage import Storage

LOCK = "state/driver.json"
HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0


class SecondDriverError(ValueError):
    """Another driver works on this sweep."""


@dataclass(frozen=True)
class Holder:
    """The driver that took a sweep last. alive: whether it still holds it, None where this machine cannot tell."""

    host: str
    pid: int
    alive: bool | None


@contextmanager
def driver_lease(storage: Storage, *, heartbeat: float = HEARTBEAT_SECONDS, expiry: float = EXPIRY_SECONDS) -> Iterator[None]:
    """Hold the sweep for this process; SecondDriverError where another one does.

    heartbeat, expiry: seconds between renewals, and after which a silent driver counts as dead (S3 only).
    """
    with _file_lock(storage) if storage.is_local else _renewed(storage, heartbeat, expiry):
        yield


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}


def _refused(storage: Storage, owner: dict[str, Any]) -> SecondDriverError:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
    return SecondDriverError(f"another driver ({who}) works on {storage.uri}; wait for it, stop it, or choose another --name")


@contextmanager
def _file_lock(storage: Storage) -> Iterator[None]:
    path = storage.full(LOCK)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(storage, _read(storage)) from None
        storage.write_json("state/driver-owner.json", _owner())
        yield


def _read(storage: Storage) -> dict[str, Any]:
    for name in ("state/driver-owner.json", LOCK):
        try:
            found: dict[str, Any] = storage.read_json(name)
            return found
        except (FileNotFoundError, ValueError):
            continue
    return {}


@contextmanager
def _renewed(storage: Storage, heartbeat: float, expiry: float) -> Iterator[None]:
    mine = _owner()
    _wait_until_silent(storage, heartbeat, expiry)
    storage.write_json(LOCK, mine | {"beat": time.time()})
    time.sleep(min(1.0, heartbeat))  # two drivers that saw the same silence both wrote; the later write stands
    if _read(storage).get("token") != mine["token"]:
        raise _refused(storage, _read(storage))
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(heartbeat) and _read(storage).get("token") == mine["token"]:
            storage.write_json(LOCK, mine | {"beat": time.time()})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        if _read(storage).get("token") == mine["token"]:  # a driver that thought this one dead may have taken over
            storage.write_json(LOCK, {})


def _wait_until_silent(storage: Storage, heartbeat: float, expiry: float) -> None:
    """Return once no driver has beaten for `expiry` seconds by our own clock; refuse as soon as one beats."""
    first = _read(storage)
    if not first.get("token"):
        return
    deadline = time.monotonic() + expiry
    while time.monotonic() < deadline:
        time.sleep(min(heartbeat, 1.0))
        now = _read(storage)
        if not now.get("token"):
            return
        if now != first:
            raise _refused(storage, now)


def read_lease(storage: Storage, *, patience: float = HEARTBEAT_SECONDS + 2.0) -> Holder | None:
    """Say which driver holds a sweep without taking or changing anything; None where none has, or the last one let go on S3.

    patience: seconds to wait for a heartbeat before a driver counts as silent (S3 only).
    """
    owner = _read(storage)
    if not owner.get("token"):
        return None
    alive = _locked(storage.full(LOCK), owner) if storage.is_local else _beats(storage, owner, patience)
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
    held = any(line.split()[1] == "FLOCK" and line.split()[-3].split(":")[-1] == inode for line in table.splitlines())
    return held or (False if here else None)  # a lock taken on another machine of a shared disk is not in this kernel's table


def _beats(storage: Storage, first: dict[str, Any], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.5)
        if (now := _read(storage)) != first:
            return bool(now.get("token"))
    return False
