"""One driver per sweep: the second is refused, the dead make room,
on a local disk and with the heartbeats used on S3.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_SECONDS, until

from sat_ray.storage.store import Storage
from sat_ray.sweep.records.lease import driver_lease, read_lease
from sat_ray.sweep.records.renewed_lease import (
    Lease,
    LostLeaseError,
    SecondDriverError,
    check_lease,
    latest,
    renewed_lease,
)

HOLD = """
import sys, time
from sat_ray.sweep.records.lease import driver_lease
from sat_ray.storage.store import Storage
with driver_lease(Storage.at(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
BEAT, EXPIRY = 0.05, 0.5
LONG = 600.0  # an expiry that no wait of a test comes near


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start another process that holds the lease of a folder, and return once it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_while_the_first_lives_and_free_after_its_sigkill(
    tmp_path: Path,
) -> None:
    first = holder(tmp_path)
    try:
        refusal = (
            rf"another driver \(process {first.pid} on .*\) works on {tmp_path}; wait for it, "
            r"stop it, or choose another --name"
        )
        with pytest.raises(SecondDriverError, match=refusal), driver_lease(Storage.at(tmp_path)):
            pass
        assert first.poll() is None
        with driver_lease(Storage.at(tmp_path / "another")):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with driver_lease(Storage.at(tmp_path)):
        pass


def test_reading_who_holds_a_sweep_turns_no_driver_away_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.at(tmp_path)
    with driver_lease(storage):
        held = read_lease(storage)
    assert held is not None and held.alive is True and held.pid == os.getpid()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    after = read_lease(storage)
    assert after is not None and after.alive is False
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with open(tmp_path / "state" / "driver.json") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        pauses = list[float]()

        def let_go(seconds: float) -> None:
            pauses.append(seconds)
            fcntl.flock(reader, fcntl.LOCK_UN)

        monkeypatch.setattr(time, "sleep", let_go)
        with driver_lease(storage):
            assert len(pauses) == 1


def test_a_driver_that_ends_or_fails_leaves_the_sweep_free(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with pytest.raises(RuntimeError), driver_lease(storage):
        raise RuntimeError
    with driver_lease(storage), pytest.raises(SecondDriverError), driver_lease(storage):
        pass


def test_a_second_driver_does_not_harm_what_the_first_has_written(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with driver_lease(storage):
        before = storage.read("state/driver-owner.json")
        with pytest.raises(SecondDriverError), driver_lease(storage):
            pass
        assert storage.read("state/driver-owner.json") == before


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return storage whose commits are links on a disk,
    and one whose commits are conditional PUTs.
    """
    if request.param == "local":
        return Storage.at(tmp_path)
    found: Storage = request.getfixturevalue("s3")
    return found


def renewed(
    storage: Storage, token: str = "a", *, beat: float = BEAT, expiry: float = EXPIRY
) -> AbstractContextManager[Lease]:
    """Hold a lease by heartbeats."""
    mine = {"host": "here", "pid": 1, "token": token, "storage": storage.uri}
    return renewed_lease(storage, mine, heartbeat=beat, expiry=expiry)


def test_heartbeats_refuse_a_second_driver_until_the_first_lets_go(storage: Storage) -> None:
    with renewed(storage):
        started = time.monotonic()
        with (
            pytest.raises(SecondDriverError, match="another driver"),
            renewed(storage, "b", expiry=LONG),
        ):
            pass
        # the first beat that is seen refuses; the second driver does not wait for the expiry
        assert time.monotonic() - started < LONG / 2
        assert latest(storage)[0] == 1
    started = time.monotonic()
    with renewed(storage, "b", expiry=LONG):
        assert latest(storage)[0] == 2
    assert time.monotonic() - started < LONG / 2  # it has not waited


def test_heartbeats_go_on_for_as_long_as_the_lease_is_held(storage: Storage) -> None:
    with renewed(storage) as lease:
        for _ in range(3):
            first = latest(storage)[1]["beat"]
            until(lambda first=first: latest(storage)[1]["beat"] > first, what="the next beat")
        lease.check()
        check_lease(storage)


def test_a_driver_that_fell_silent_is_taken_over_after_the_expiry_and_not_before(
    storage: Storage,
) -> None:
    dead = {
        "host": "gone",
        "pid": 1,
        "token": "dead",
        "storage": storage.uri,
        "beat": time.time() + 1e6,
    }  # its clock is not ours
    storage.write_json("state/drivers/00000041.json", dead)
    started = time.monotonic()
    with renewed(storage):
        assert time.monotonic() - started >= EXPIRY
        assert latest(storage)[0] == 42


def test_a_copied_sweep_belongs_to_nobody(storage: Storage) -> None:
    """Its files name the storage that they were written for, of either kind."""
    elsewhere = {"host": "gone", "pid": 1, "token": "dead", "storage": "s3://other/sweep"}
    storage.write_json("state/drivers/00000007.json", elsewhere)
    storage.write_json("state/driver-owner.json", elsewhere)
    storage.write_json("state/driver.json", {})
    assert read_lease(storage, patience=0.1) is None
    started = time.monotonic()
    with renewed(storage, expiry=LONG):
        assert latest(storage)[0] == 8
    with driver_lease(storage, heartbeat=BEAT, expiry=LONG):
        pass
    assert time.monotonic() - started < LONG / 2


@pytest.mark.parametrize("drivers", [2, 8])
def test_of_drivers_that_start_in_the_same_moment_exactly_one_goes_on(
    drivers: int, storage: Storage
) -> None:
    ready, others_are_away = threading.Barrier(drivers), threading.Event()
    inside, turned_away = list[int](), list[int]()

    def drive(number: int) -> None:
        ready.wait()
        try:
            with renewed(storage, f"driver {number}", beat=0.2, expiry=LONG):
                inside.append(number)
                assert others_are_away.wait(PATIENCE_SECONDS)
        except SecondDriverError:
            turned_away.append(number)
            if len(turned_away) == drivers - 1:
                others_are_away.set()

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(turned_away)) == (1, drivers - 1)


def test_a_write_that_is_late_does_not_make_a_second_holder(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, late, taken = Storage.commit, threading.Event(), threading.Event()

    def delayed(self: Storage, path: str, data: bytes) -> bool:
        late.set()
        assert taken.wait(PATIENCE_SECONDS)
        return commit(self, path, data)

    refusals: list[str] = []

    def drive() -> None:
        try:
            with renewed(storage, "late"):
                pass
        except SecondDriverError as error:
            refusals.append(str(error))

    monkeypatch.setattr(Storage, "commit", delayed)
    thread = threading.Thread(target=drive)
    thread.start()
    assert late.wait(PATIENCE_SECONDS)
    monkeypatch.setattr(Storage, "commit", commit)
    with renewed(storage, "in time") as lease:
        taken.set()
        thread.join()
        lease.check()
        check_lease(storage)
    assert len(refusals) == 1


def test_a_claim_whose_answer_was_lost_is_still_a_claim(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Storage.commit

    def answer_lost(self: Storage, path: str, data: bytes) -> bool:
        assert commit(self, path, data)
        return commit(self, path, data)  # the client tries again

    monkeypatch.setattr(Storage, "commit", answer_lost)
    with renewed(storage):
        assert latest(storage)[0] == 1


STOPPED = """
import sys
from sat_ray.sweep.records.renewed_lease import renewed_lease
from sat_ray.sweep.records.store import Records
from sat_ray.storage.store import Storage
from sat_ray.sweep.tasks import SEARCH
storage = Storage.at(sys.argv[1])
mine = {"host": "here", "pid": 2, "token": "first", "storage": storage.uri}
with renewed_lease(storage, mine, heartbeat=float(sys.argv[2]), expiry=1.0):
    for key in sys.stdin:
        try:
            Records(storage).commit(SEARCH, key.strip(), inputs={}, payload={}, seconds=0.0)
            print("committed", flush=True)
        except ValueError as error:
            print(error, flush=True)
"""


def taken_over(storage: Storage) -> ExitStack:
    """Take a sweep whose driver was stopped. Its last heartbeat may arrive after the stop, and
    refuses the first attempt.
    """
    held = ExitStack()
    try:
        held.enter_context(renewed(storage, "second", expiry=1.0))
    except SecondDriverError:
        held.enter_context(renewed(storage, "second", expiry=1.0))
    return held


@pytest.mark.parametrize("beat", [0.2, 60.0], ids=["renewing", "before its next heartbeat"])
def test_a_driver_that_was_stopped_past_the_expiry_notices_before_its_next_commit(
    beat: float, storage: Storage
) -> None:
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "text": True,
        "bufsize": 1,
    }
    first = subprocess.Popen([sys.executable, "-c", STOPPED, storage.uri, str(beat)], **pipes)
    assert first.stdin is not None and first.stdout is not None
    try:
        first.stdin.write("1\n")
        assert first.stdout.readline() == "committed\n"
        first.send_signal(signal.SIGSTOP)
        with taken_over(storage):
            first.send_signal(signal.SIGCONT)
            first.stdin.write("2\n")
            said = first.stdout.readline()
            assert (
                said.startswith("another driver (process 1 on here) has taken")
                and "nothing is lost" in said
            )
            assert storage.names("state/search") == ["1.json"]
            first.stdin.close()
            assert first.wait(PATIENCE_SECONDS) == 0
            check_lease(storage)  # its end has not taken the sweep from the second
            assert latest(storage)[1]["token"] == "second"
    finally:
        first.kill()
        first.wait()


def test_a_driver_finds_by_its_heartbeat_that_it_was_taken_over(storage: Storage) -> None:
    with renewed(storage) as lease:
        storage.write_json(
            "state/drivers/00000002.json", {"host": "new", "pid": 2, "storage": storage.uri}
        )
        assert lease.lost.wait(PATIENCE_SECONDS)
        with pytest.raises(LostLeaseError, match=r"another driver \(process 2 on new\) has taken"):
            lease.check()
    assert latest(storage)[1]["host"] == "new"
