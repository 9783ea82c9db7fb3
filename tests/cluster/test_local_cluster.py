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


@pytest.mark.parametrize(
    "make", [_open, _link, _of_another], ids=lambda make: make.__name__.strip("_")
)
def test_a_state_folder_of_a_stranger_is_refused_before_anything_starts(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    make(state)
    ray = Path(sys.executable).parent / "ray"
    variables = environment(SAT_RAY_LOCAL_STATE=str(state), RAY=str(ray), TMPDIR=str(tmp_path))
    done = subprocess.run(
        ["bash", SCRIPT, "up", "1"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert f"{state} must be a folder of" in done.stderr
    assert not list(state.iterdir()) and not list(tmp_path.glob("sat_ray-*"))


@pytest.mark.parametrize(
    "make", [_open, _link, _of_another], ids=lambda make: make.__name__.strip("_")
)
def test_a_state_folder_of_a_stranger_names_no_process_to_end(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    make(state)
    with subprocess.Popen(["sleep", "900"], start_new_session=True) as process:
        started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (state / "head.pid").write_text(f"{process.pid} {started}\n")
        variables = environment(SAT_RAY_LOCAL_STATE=str(state), RAY=sys.executable)
        done = subprocess.run(
            ["bash", SCRIPT, "down"],
            env=variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        alive = process.poll() is None
        process.kill()
    assert alive and done.returncode == 1
    assert f"{state} must be a folder of" in done.stderr


@pytest.mark.fault
def test_the_session_is_closed_to_others_while_it_runs_and_gone_when_it_is_put_down(
    tmp_path: Path,
) -> None:
    ray = Path(sys.executable).parent / "ray"
    sessions = Path(
        tempfile.mkdtemp(prefix="s", dir="/tmp")
    )  # short: the sockets' paths may have 107 characters
    variables = environment(
        SAT_RAY_LOCAL_STATE=str(tmp_path / "state"),
        SAT_RAY_LOCAL_PORT="27379",
        RAY=str(ray),
        TMPDIR=str(sessions),
    )
    try:
        subprocess.run(
            ["bash", SCRIPT, "up", "1"],
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        (session,) = sessions.glob("sat_ray-*")
        assert session.stat().st_mode & 0o777 == 0o700
        assert list(session.glob("r/session_*/sockets"))
    finally:
        subprocess.run(
            ["bash", SCRIPT, "down"], env=variables, capture_output=True, timeout=120, check=True
        )
    left = list(sessions.glob("sat_ray-*"))
    shutil.rmtree(sessions)
    assert left == []
