"""One driver per sweep: the second is refused, the dead make room, on a local disk and with the heartbeats used on S3."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sat_ray.lease import LOCK, SecondDriverError, _renewed, driver_lease
from sat_ray.storage import Storage

HOLD = """
import sys, time
from sat_ray.lease import driver_lease
from sat_ray.storage import Storage
with driver_lease(Storage.at(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
BEAT, EXPIRY = 0.02, 0.3


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start another process that holds the lease of a folder, and return once it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_while_the_first_lives_and_free_after_its_sigkill(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        refusal = rf"another driver \(process {first.pid} on .*\) works on {tmp_path}; wait for it, stop it, or choose another --name"
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


def test_heartbeats_refuse_a_second_driver_until_the_first_lets_go(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with _renewed(storage, BEAT, EXPIRY):
        token, started = storage.read_json(LOCK)["token"], time.monotonic()
        with pytest.raises(SecondDriverError, match="another driver"), _renewed(storage, BEAT, 10.0):
            pass
        assert time.monotonic() - started < 5  # the first beat that is seen refuses; nobody waits for the expiry
        assert storage.read_json(LOCK)["token"] == token
    started = time.monotonic()
    with _renewed(storage, BEAT, 60.0):
        pass
    assert time.monotonic() - started < 30  # nobody was waited for


def test_heartbeats_go_on_for_as_long_as_the_lease_is_held(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with _renewed(storage, BEAT, EXPIRY):
        first = storage.read_json(LOCK)
        time.sleep(10 * BEAT)
        later = storage.read_json(LOCK)
    assert later["token"] == first["token"] and later["beat"] > first["beat"]


def test_a_driver_that_fell_silent_is_taken_over_after_the_expiry_and_not_before(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    storage.write_json(LOCK, {"host": "gone", "pid": 1, "token": "dead", "beat": time.time() + 1e6})  # its clock is not ours
    started = time.monotonic()
    with _renewed(storage, BEAT, EXPIRY):
        assert time.monotonic() - started >= EXPIRY
        assert storage.read_json(LOCK)["token"] != "dead"


def test_of_two_drivers_that_start_in_the_same_moment_at_most_one_goes_on(tmp_path: Path) -> None:
    storage, ready, inside, refused = Storage.at(tmp_path), threading.Barrier(2), [], []

    def drive() -> None:
        ready.wait()
        try:
            with _renewed(storage, 0.2, EXPIRY):
                inside.append(1)
                time.sleep(0.5)
        except SecondDriverError:
            refused.append(1)

    both = [threading.Thread(target=drive) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert (len(inside), len(refused)) == (1, 1)


def test_a_driver_that_was_taken_over_does_not_erase_the_lease_of_the_other(tmp_path: Path) -> None:
    """A driver stopped for longer than the expiry wakes up, beats and ends; the new holder's lease must outlive that."""
    storage = Storage.at(tmp_path)
    other = {"host": "new", "pid": 2, "token": "new holder", "beat": 1.0}
    with _renewed(storage, BEAT, EXPIRY):
        storage.write_json(LOCK, other)
        time.sleep(5 * BEAT)
    assert storage.read_json(LOCK).get("token") == "new holder"
