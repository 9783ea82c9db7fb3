"""cluster/local.sh uses no folder that somebody else made, can enter or put in its way."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from repository import ROOT
from sweeps import environment
from waiting import PATIENCE_SECONDS

SCRIPT = ROOT / "cluster" / "local.sh"
RAY = Path(sys.executable).parent / "ray"


def _open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _link(folder: Path) -> None:
    target = folder.with_name("target")
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


def _of_another(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if os.getuid():
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, -1)


def _run(*words: str, seconds: float = PATIENCE_SECONDS, **variables: str) -> tuple[int, str]:
    """Run the script; return its exit status and what it says."""
    done = subprocess.run(
        ["bash", SCRIPT, *words],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


OF_A_STRANGER = pytest.mark.parametrize(
    "make", [_open, _link, _of_another], ids=lambda make: make.__name__.strip("_")
)


@OF_A_STRANGER
def test_a_state_folder_of_a_stranger_is_refused_before_anything_starts(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    make(state)
    variables = {"SAT_RAY_LOCAL_STATE": str(state), "RAY": str(RAY), "TMPDIR": str(tmp_path)}
    status, said = _run("up", "1", **variables)
    assert status == 1 and f"{state} must be a folder of" in said
    assert not list(state.iterdir()) and not list(tmp_path.glob("sat_ray-*"))


@OF_A_STRANGER
def test_a_state_folder_of_a_stranger_names_no_process_to_end(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    make(state)
    with subprocess.Popen(["sleep", "900"], start_new_session=True) as process:
        started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (state / "head.pid").write_text(f"{process.pid} {started}\n")
        status, said = _run("down", SAT_RAY_LOCAL_STATE=str(state), RAY=sys.executable)
        alive = process.poll() is None
        process.kill()
    assert alive and status == 1
    assert f"{state} must be a folder of" in said


@pytest.mark.fault
def test_the_session_is_closed_to_others_while_it_runs_and_gone_when_it_is_put_down(
    tmp_path: Path,
) -> None:
    # short: the sockets' paths may have 107 characters
    sessions = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    variables = {
        "SAT_RAY_LOCAL_STATE": str(tmp_path / "state"),
        "SAT_RAY_LOCAL_PORT": "27379",
        "RAY": str(RAY),
        "TMPDIR": str(sessions),
    }
    try:
        status, said = _run("up", "1", seconds=300, **variables)
        assert status == 0, said
        (session,) = sessions.glob("sat_ray-*")
        assert session.stat().st_mode & 0o777 == 0o700
        assert list(session.glob("r/session_*/sockets"))
    finally:
        status, said = _run("down", seconds=120, **variables)
        assert status == 0, said
    left = list(sessions.glob("sat_ray-*"))
    shutil.rmtree(sessions)
    assert left == []
