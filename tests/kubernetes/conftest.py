"""The cluster that the scenarios need, and what each of them starts from."""

import subprocess

import pytest
from scenarios import environment

from tests.kubernetes.machine.settings import KUBECONFIG


@pytest.fixture(autouse=True, scope="session")
def cluster() -> None:
    """Fail at once where no cluster runs."""
    ready = ["kubectl", "get", "--raw=/readyz"]
    if (
        not KUBECONFIG.exists()
        or subprocess.run(ready, capture_output=True, env=environment()).returncode
    ):
        pytest.exit("no Kubernetes answers here: run `make kubernetes-up` first", returncode=2)
