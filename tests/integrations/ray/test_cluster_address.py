"""A wrong RAY_ADDRESS is refused within seconds, by a line that names the variable."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from sweeps import environment, pipeline

from sat_ray.integrations.ray.address import check_address
from sat_ray.integrations.ray.session import refusal


@pytest.fixture
def silent() -> Iterator[str]:
    """Listen on a port and answer nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def web_server() -> Iterator[str]:
    """Serve HTTP/1.1, as the dashboard of a cluster does."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def grpc_server() -> Iterator[str]:
    """Serve gRPC without any service, with the library that Ray uses."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


WRONG = {
    "http://10.1.2.3:8265": "an address to submit jobs to; .*ray job submit --address http://10.1.2.3:8265",
    "http://me:planted@10.1.2.3:8265": r"--address http://\*\*\*@10.1.2.3:8265",
    "redis://me:planted@head:6379": r"got redis://\*\*\*@head:6379; use",
    "head": "RAY_ADDRESS must be the address of a Ray, got head; use HOST:PORT",
    "head:99999": "RAY_ADDRESS must be the address of a Ray",
    "redis://head:6379": "RAY_ADDRESS must be the address of a Ray",
    "127.0.0.1:9": (
        "RAY_ADDRESS is 127.0.0.1:9, and no Ray answers there .connection refused.; start the "
        "cluster, correct"
    ),
    "[::1]:9": "no Ray answers there",
    "no-such-host.invalid:6379": "no Ray answers there .*unset it for a private Ray",
}


@pytest.mark.parametrize(("address", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_address_is_refused_with_what_to_do(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_address(address)
    assert "planted" not in str(caught.value)


def test_a_port_that_is_not_rays_is_refused_within_the_limit(silent: str, web_server: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="nothing within 1 s"):
        check_address(silent, timeout_seconds=1.0)
    with pytest.raises(
        ValueError, match=r"another program listens on this port|nothing within 1 s"
    ):
        check_address(web_server, timeout_seconds=1.0)
    assert time.monotonic() - began < 100


def test_an_address_where_grpc_answers_passes(grpc_server: str) -> None:
    check_address(grpc_server)
    check_address(f"ray://{grpc_server}")
    check_address("auto")


def test_a_sweep_with_a_wrong_address_ends_in_one_line(tmp_path: object) -> None:
    began = time.monotonic()
    done = pipeline(
        "sweep",
        "digits_smoke",
        "--storage",
        str(tmp_path),
        env=environment(RAY_ADDRESS="127.0.0.1:9"),
    )
    assert done.returncode == 2 and time.monotonic() - began < 300
    assert (
        done.stderr.startswith("error: RAY_ADDRESS is 127.0.0.1:9, and no Ray answers there")
        and done.stderr.count("\n") == 1
    )


def test_the_check_imports_no_ray() -> None:
    code = "import sys, sat_ray.integrations.ray.address; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_refusal_for_the_token_says_so_though_ray_names_it_in_a_cause_alone() -> None:
    error = ConnectionError("Failed to connect to Ray cluster at head:6379")
    error.__cause__ = RuntimeError("last error:\nray.exceptions.AuthenticationError: no")
    assert "set RAY_AUTH_MODE=token" in refusal(error)
    assert refusal(ConnectionError("no cluster\nmore")) == "no cluster"
    assert refusal(ConnectionError()) == "ConnectionError"
