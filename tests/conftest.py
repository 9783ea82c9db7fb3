"""Fixtures shared by all tests: real digits, one small model adversarially trained on them, and an
S3 server, each once per session.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3_server
from hypothesis import settings
from trainings import digits_again, train_small

from sat_ray.data.split import Split
from sat_ray.models import Normalized
from sat_ray.storage.store import Storage
from sat_ray.threat import ThreatModel
from sat_ray.utils.worker_process import set_up_worker

BUCKET = "tests-bucket"

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("repeatable")


WITH_RAY = (
    *("test_bad_input_of_sweeps", "test_evaluation_on_ray", "test_external"),
    *("test_job_submission", "test_preparing", "test_ray_cluster"),
    *("test_sweep", "test_train_session"),
)
# They start none, but with them both halves of `make test` take about as long.
WITH_THEM = ("test_benchmarks", "test_documented_commands")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a Ray: two that start at once collide on ports, so `make test` runs these
    one by one and the others beside them.
    """
    for item in items:
        if item.path.stem in (*WITH_RAY, *WITH_THEM):
            item.add_marker("ray")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep torch on one core: the kernels are tiny,
    and a fixed thread count fixes their rounding.
    """
    set_up_worker(threads=1)


@pytest.fixture(scope="session")
def digits() -> Split:
    """Return scikit-learn's 1,797 handwritten digits as uint8 (N, 1, 8, 8); image_id = index."""
    return digits_again()


@pytest.fixture(scope="session")
def digits_threat_model() -> ThreatModel:
    """Return a ball large enough to break about half of the digits,
    small enough to leave survivors.
    """
    return ThreatModel("linf", 40 / 255)


@pytest.fixture(scope="session")
def digits_model(digits: Split, digits_threat_model: ThreatModel) -> Normalized:
    """Return a relu model in inference mode; tests must not change it."""
    return train_small(digits, digits_threat_model, activation="relu")


@pytest.fixture(scope="session")
def held_out(digits: Split) -> Split:
    """Return 77 digits that the model was not trained on:
    two full blocks of 32 slots and a ragged third.
    """
    return digits.take(slice(1000, 1077))


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a real S3 server with one bucket and return the variables that lead to it; skip with a
    notice where it cannot run.
    """
    folder = tmp_path_factory.mktemp("s3")
    if importlib.util.find_spec("swift") is None:
        pytest.skip(
            "swift is not installed (requirements-dev.txt): nothing was run against an S3 server"
        )
    try:
        os.setxattr(folder, "user.probe", b"")
    except OSError as error:
        pytest.skip(
            f"{folder} has no user extended attributes ({error}): nothing was run against an S3 "
            "server"
        )
    port = _free_ports(len(s3_server.ROLES))
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-W", "ignore", s3_server.__file__, str(folder), str(port)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n", (
            folder / "log"
        ).read_text()
        variables = s3_server.environment(port)
        s3_server.client(variables["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
        yield variables
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Return an empty folder on a real S3 server, with this process's environment set for it."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return Storage.at(f"s3://{BUCKET}/{uuid.uuid4().hex}")


def _free_ports(count: int) -> int:
    """Return the first of some consecutive ports that are free now."""
    for first in range(20_000 + os.getpid() % 10_000, 32_000, count):
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        else:
            return first
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no free ports")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Return a disk, mounted for real, of 1 MiB or of the parameter; skip where mounting fails."""
    place = tmp_path / "small"
    place.mkdir()
    size = getattr(request, "param", "1m")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def published_network(
    digits_model: Normalized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Work beside a module with the network of `digits_model`; return its function's name."""
    assert digits_model.spec is not None
    (tmp_path / "published_net.py").write_text(
        "from sat_ray.models import build_model\n"
        "def net(): return build_model('small_resnet', num_classes=10, in_channels=1, "
        f"width={digits_model.spec.width}).body\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "published_net", raising=False)
    return "published_net:net"
