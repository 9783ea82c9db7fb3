"""A private Ray answers its own driver and no stranger on the machine or the network."""

import os
import subprocess
import sys

import pytest
from sweeps import environment

OWNER = """
import os, subprocess, sys
from sat_ray.distributed.session import ray_session

with ray_session():
    import ray

    assert ray.get(ray.remote(lambda: 42).remote()) == 42
    address = ray.get_runtime_context().gcs_address
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"RAY_AUTH_MODE": sys.argv[2]}
    variables |= {"RAY_AUTH_TOKEN": "0" * 64} if sys.argv[2] == "token" else {}
    done = subprocess.run([sys.executable, "-c", sys.argv[1], address], env=variables, capture_output=True, text=True)
    print("stranger ended with", done.returncode, done.stdout[-200:], flush=True)
"""
STRANGER = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('in', ray.get(ray.remote(lambda: 42).remote()))"


@pytest.mark.fault
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_stranger_without_the_token_or_with_another_is_refused_by_a_private_ray(mode: str) -> None:
    assert "RAY_ADDRESS" not in os.environ
    done = subprocess.run(
        [sys.executable, "-c", OWNER, STRANGER, mode], env=environment(), capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "stranger ended with 1" in done.stdout and "in 42" not in done.stdout
