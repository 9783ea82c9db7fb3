"""A lease by heartbeats, for stores without locks.

Every driver that takes a sweep makes the next file of state/drivers/ (00000001.json, 00000002.json
and so on) on the condition that it is not there, so exactly one of several succeeds. Only the
driver that made a file writes it again, as its heartbeat. A driver that finds a later file than its
own has lost the sweep. The files stay: a driver that was stopped may look for them after any time.

Only If-None-Match is needed. Some S3 servers ignore If-Match, and a sweep would not notice.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sat_ray.storage.store import Storage
from sat_ray.utils.serialization import json_bytes

FOLDER = "state/drivers"
LEASE = "SAT_RAY_LEASE"  # in the environment of the driver and its workers: number and storage
BEATS_SEEN = 1.0  # seconds between two looks at another driver's file


class SecondDriverError(ValueError):
    """Another driver works on this sweep."""


class LostLeaseError(ValueError):
    """Another driver has taken this sweep over."""


class Lease:
    """A sweep that this process holds. lost: set by the thread that renews the lease."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.lost = threading.Event()

    def check(self) -> None:
        """Raise LostLeaseError where the last heartbeat found the sweep taken over.

        It makes no request.
        """
        if self.lost.is_set():
            raise _lost(self.storage)


def named(owner: dict[str, Any]) -> str:
    """Return an owner's process and host, for messages."""
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"


def refused(storage: Storage, owner: dict[str, Any]) -> SecondDriverError:
    """Return the error of a driver that may not work on a sweep."""
    return SecondDriverError(
        f"another driver ({named(owner)}) works on {storage.uri}; "
        "wait for it, stop it, or choose another --name"
    )


def _lost(storage: Storage) -> LostLeaseError:
    owner = latest(storage)[1]
    return LostLeaseError(
        f"another driver ({named(owner)}) has taken {storage.uri} over, because this one was "
        "silent for too long; this one has stopped, and nothing is lost"
    )


def _path(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _contents(mine: dict[str, Any], *, released: int = 0) -> bytes:
    """Spell an owner and this moment, always in as many bytes.

    A reader of S3 may ask for the size of one version and then read the next one.
    """
    return json_bytes(mine | {"beat": f"{time.time():.6f}", "released": released})


def latest(storage: Storage) -> tuple[int, dict[str, Any]]:
    """Return the number and the contents of the last file that a driver made; (0, {}) for none."""
    listed = [name for name in storage.names(FOLDER) if re.fullmatch(r"\d{8}\.json", name)]
    number = int(listed[-1][:8]) if listed else 0
    while storage.exists(_path(number + 1)):  # a store may list late what it has
        number += 1
    if not number:
        return 0, {}
    return number, storage.read_object(_path(number))


def holds(storage: Storage, owner: dict[str, Any]) -> bool:
    """Say whether an owner may be at work here: it has not let go, and its file is no copy."""
    return owner.get("storage") == storage.uri and not owner.get("released")


@contextmanager
def renewed_lease(
    storage: Storage, mine: dict[str, Any], *, heartbeat: float, expiry: float
) -> Iterator[Lease]:
    """Hold a sweep by heartbeats; SecondDriverError where another driver does.

    mine: what identifies this driver, with a token that no other has.
    """
    number = _free_number(storage, heartbeat, expiry)
    if not storage.commit(_path(number), _contents(mine)):
        winner = storage.read_object(_path(number))
        if winner.get("token") != mine["token"]:  # else it is ours: the first answer was lost
            raise refused(storage, winner)
    lease, ended = Lease(storage), threading.Event()
    beats = threading.Thread(
        target=_beat, args=(lease, number, mine, heartbeat, ended), daemon=True
    )
    before = os.environ.get(LEASE)
    os.environ[LEASE] = f"{number} {storage.uri}"
    beats.start()
    try:
        yield lease
    finally:
        ended.set()
        beats.join()
        os.environ.pop(LEASE)
        if before is not None:
            os.environ[LEASE] = before
        storage.write(_path(number), _contents(mine, released=1))


def _free_number(storage: Storage, heartbeat: float, expiry: float) -> int:
    """Return the number to take once no driver has beaten for `expiry` seconds by our own clock."""
    seen = latest(storage)
    deadline = time.monotonic() + expiry
    while holds(storage, seen[1]) and time.monotonic() < deadline:
        time.sleep(min(heartbeat, BEATS_SEEN))
        now = latest(storage)
        if now != seen and holds(storage, now[1]):
            raise refused(storage, now[1])
        seen = now
    return seen[0] + 1


def _beat(
    lease: Lease, number: int, mine: dict[str, Any], heartbeat: float, ended: threading.Event
) -> None:
    while not ended.wait(heartbeat):
        with contextlib.suppress(OSError):  # the store is away: try again, for as long as it takes
            if lease.storage.exists(_path(number + 1)):
                lease.lost.set()
                return
            lease.storage.write(_path(number), _contents(mine))


def check_lease(storage: Storage) -> None:
    """Raise LostLeaseError where this process works for a driver that has lost the sweep.

    It reads the storage; call it before every commit. A process that works for no driver may go on.
    """
    number, _, uri = os.environ.get(LEASE, "").partition(" ")
    if uri == storage.uri and storage.exists(_path(int(number) + 1)):
        raise _lost(storage)
