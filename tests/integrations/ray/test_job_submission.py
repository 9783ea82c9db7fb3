"""The way of a cluster: a real `ray start --head`, a token,
and `ray job submit -- python pipelines/sweep.py`.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sweeps import ROOT, environment, leaderboard, pipeline
from waiting import await_answer

FOLLOW = """
import sys
from cluster.commands.kubectl import ClusterError, Kubectl
from cluster.commands.submit import follow

try:
    sys.exit(follow(Kubectl("test"), *sys.argv[1:3], sys.argv[3:]))
except ClusterError as error:
    sys.exit(str(error))
"""
RAY = str(Path(sys.executable).parent / "ray")
PORT, DASHBOARD, AGENT = 26479, 28265, 28365  # another Ray of this machine may have the usual ones


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the token, the storage and the head's log."""
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def head(folder: Path) -> Iterator[dict[str, str]]:
    """Start a head node of these tests' own, and end exactly its processes."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    variables = environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{DASHBOARD}",
        SAT_RAY_STORAGE=str(folder / "storage"),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    variables.pop("RAY_AUTH_TOKEN", None)  # a private Ray of an earlier test may have left one
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
    command += [f"--port={PORT}", "--ray-client-server-port=26480"]
    command += [f"--dashboard-port={DASHBOARD}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={AGENT}"]
    command += [f"--temp-dir={tempfile.mkdtemp(prefix='ray-')}"]
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(
        command, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        address = f"http://127.0.0.1:{DASHBOARD}/api/version"
        await_answer(address, process, log=folder / "head.log")
        yield variables
    finally:
        own = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(own, timeout=5)
        for survivor in alive:
            survivor.kill()


def test_a_submitted_sweep_does_the_work_of_a_local_one_on_the_cluster(
    head: dict[str, str], folder: Path
) -> None:
    flags = ["digits_smoke", "--search.pairs", "--final.seeds", "0"]
    submit = [RAY, "job", "submit", "--working-dir", str(ROOT), "--"]
    submit += ["python", "pipelines/sweep.py", *flags]
    done = subprocess.run(
        submit, env=head, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folders = [path.parent for path in (folder / "storage").glob("*/leaderboard.json")]
    assert len(folders) == 1
    assert len(leaderboard(folders[0])["rows"]) == 2
    assert "the cluster at" in done.stdout
    # here, without the cluster: everything is committed
    again = pipeline("sweep", *flags, "--storage", str(folder / "storage"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("0 computed") == 4


def test_a_job_without_the_token_is_refused(head: dict[str, str]) -> None:
    strangers = {name: value for name, value in head.items() if not name.startswith("RAY_AUTH")} | {
        "RAY_AUTH_MODE": "disabled"
    }
    submit = [RAY, "job", "submit", "--", "true"]
    done = subprocess.run(
        submit, env=strangers, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0


def followed(address: str, token: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Submit a small folder as `make submit` does, and follow its job."""
    return subprocess.run(
        [sys.executable, "-c", FOLLOW, address, token, "cat", "given"],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_the_job_of_make_submit_is_followed_or_refused_in_one_line(
    head: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "given").write_text("what the job prints\n")
    token = (folder / "token").read_text()
    done = followed(head["RAY_API_SERVER_ADDRESS"], token, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "what the job prints" in done.stdout
    for address, secret in (
        (head["RAY_API_SERVER_ADDRESS"], "a" * 64),
        ("http://127.0.0.1:9", token),
    ):
        refused = followed(address, secret, tmp_path)
        assert refused.returncode == 1 and secret not in refused.stderr
        (line,) = refused.stderr.splitlines()
        assert line.startswith("context test: the head did not take the job (")
