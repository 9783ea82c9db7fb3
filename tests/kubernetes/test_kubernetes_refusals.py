"""What `make submit` says, before it submits, where a running head cannot do what it needs."""

import re
import subprocess
import sys

import pytest
from repository import ROOT
from scenarios import KUBECONFIG, environment, head_pod

from cluster.commands.kubectl import ClusterError, Kubectl, connect
from cluster.commands.submit import check_storage, check_token, dashboard, token

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def kubectl(monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    monkeypatch.setenv("KUBECONFIG", str(KUBECONFIG))
    monkeypatch.setenv("PATH", environment()["PATH"])
    return connect()


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("/nowhere/sweeps", "/nowhere/sweeps cannot be written .*Permission denied"),
        ("s3://nobody/sweeps", "s3://nobody/sweeps cannot list"),
    ],
)
def test_a_storage_that_pods_cannot_use_is_one_line_before_a_job_is_submitted(storage, words):
    head_pod()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.commands.submit", "digits_smoke", "--storage", storage],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("context ")
    assert re.search(words, line) and "the NetworkPolicy ray must allow" in line


def test_the_storage_of_the_manifests_and_the_token_are_accepted(kubectl):
    check_storage(kubectl, head_pod())
    with dashboard(kubectl) as address:
        check_token(kubectl, address, token(kubectl))


def test_a_token_that_was_changed_after_the_head_started_is_explained(kubectl):
    with dashboard(kubectl) as address, pytest.raises(ClusterError, match="refuses the token"):
        check_token(kubectl, address, "0" * 64)
