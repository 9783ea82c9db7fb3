"""A private Ray answers its own driver and no stranger on the machine or the network."""

import os
import socket
import subprocess
import sys

import pytest
from listeners import is_loopback
from repository import paths_of_tests
from sweeps import environment

OWNER = """
import os, subprocess, sys
from sat_ray.integrations.ray.session import ray_session

with ray_session():
    import ray

    assert ray.get(ray.remote(lambda: 42).remote()) == 42
    address = ray.get_runtime_context().gcs_address
    plain = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_")}
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    for name, variables in {
        "none": {"RAY_AUTH_MODE": "disabled"}, "another": own | {"RAY_AUTH_TOKEN": "0" * 64},
        "right": own,
    }.items():
        command = [sys.executable, "-c", sys.argv[1], address]
        done = subprocess.run(command, env=plain | variables, capture_output=True, text=True)
        end = (done.stdout + done.stderr).strip().splitlines()[-1]
        print(f"{name}: {done.returncode} {end}", flush=True)
"""
STRANGER = """
import sys
from sat_ray.integrations.ray.private import on_loopback_alone
from sat_ray.integrations.ray.session import _join

with on_loopback_alone():  # elsewhere Ray replaces 127.0.0.1 by an address that reaches nothing
    _join(sys.argv[1])
print("in")
"""


def printed(*code: str, **variables: str) -> list[str]:
    """Return the lines that a program prints, run in a process of its own."""
    command, settings = [sys.executable, "-c", *code], environment(**variables)
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.fault
def test_a_private_ray_answers_its_own_token_and_neither_another_nor_none() -> None:
    assert "RAY_ADDRESS" not in os.environ
    ends = dict(line.split(": ", 1) for line in printed(OWNER, STRANGER))
    assert ends["right"] == "0 in"
    for name in ("none", "another"):
        assert ends[name].startswith("1 ValueError: RAY_ADDRESS is "), ends
        assert "set RAY_AUTH_MODE=token" in ends[name], ends


TRAINING = """
import os, sys, tempfile, threading
from pathlib import Path

from sat_ray.integrations.ray.session import ray_session

with ray_session(), tempfile.TemporaryDirectory() as folder:
    import ray
    from listeners import is_loopback, listening
    from small_rays import task_in

    from sat_ray.sweep.config import ResourceSettings
    from sat_ray.integrations.ray.train import train_all
    from sat_ray.sweep.records.store import Records
    from sat_ray.storage.store import Storage
    from sat_ray.sweep.tasks import TRAIN

    found, ended = set(), threading.Event()

    def watch():
        while not ended.is_set():
            found.update(listening())
            ended.wait(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    records = Records(Storage(f"{folder}/sweep"))
    task = task_in(Path(folder) / "data", epochs=1, validate_every=1)
    train_all([task], records, ResourceSettings(train_workers=2))
    ended.set()
    thread.join()
    assert records.find(TRAIN, task.key) is not None
    rays = Path(ray._private.worker._global_node.get_temp_dir_path())
    print("modes", oct(rays.stat().st_mode), oct(rays.parent.stat().st_mode), flush=True)
    print("programs", sorted({one[0] for one in found}), flush=True)
    print("others", sorted({one[:2] for one in found if not is_loopback(one[1])}), flush=True)
"""


@pytest.mark.fault
def test_nothing_of_a_private_training_listens_beyond_the_loopback_or_lies_in_an_open_folder() -> (
    None
):
    found = printed(TRAINING, PYTHONPATH=paths_of_tests())
    lines = dict(line.split(" ", 1) for line in found if " " in line)
    assert "raylet" in lines["programs"] and "RayTrainWo" in lines["programs"]
    assert lines["others"] == "[]"
    assert int(lines["modes"].split()[1], 8) & 0o077 == 0, lines["modes"]


def test_the_addresses_of_proc_are_read_rightly() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as inner,
        socket.create_server(("0.0.0.0", 0)) as outer,
    ):
        from listeners import listening

        found = {port: is_loopback(address) for _, address, port in listening()}
        assert found[inner.getsockname()[1]] is True and found[outer.getsockname()[1]] is False
    assert is_loopback("00000000000000000000000001000000") and is_loopback(
        "0000000000000000FFFF00000100007F"
    )
    assert not is_loopback("00000000000000000000000000000000") and not is_loopback("020200C0")
