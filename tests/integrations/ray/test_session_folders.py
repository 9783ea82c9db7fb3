"""The folders of private Rays: gone with their driver,
or with the next start after a driver was killed.
"""

import inspect
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sat_ray.integrations.ray.local.session_folders import RAY, require_short, session_folder
from sat_ray.integrations.temporary_folders import LOCK, is_private_folder, remove_abandoned

DRIVER = """
import sys, time
from pathlib import Path
from sat_ray.integrations.ray.local.session_folders import session_folder
with session_folder(Path(sys.argv[1])) as folder:
    (Path(folder) / "session").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_the_folder_of_a_killed_driver_goes_at_the_next_start_and_that_of_a_living_one_stays(
    tmp_path: Path,
) -> None:
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        folders = [
            Path(driver.stdout.readline().strip())
            for driver in drivers
            if driver.stdout is not None
        ]
        (
            tmp_path / "sat_ray-0-26379"
        ).mkdir()  # a name like ours, and no lock in it: somebody else's
        drivers[0].kill()
        drivers[0].wait()
        assert folders[0].is_dir()
        with session_folder(tmp_path) as mine:
            assert sorted(tmp_path.iterdir()) == sorted(
                [folders[1], Path(mine), tmp_path / "sat_ray-0-26379"]
            )
            assert remove_abandoned(tmp_path) == []
        assert not Path(mine).exists()
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    assert remove_abandoned(tmp_path) == [folders[1]]


def test_a_folder_that_is_just_being_made_is_not_taken_for_an_abandoned_one(tmp_path: Path) -> None:
    (tmp_path / "sat_ray-young").mkdir()
    (tmp_path / "sat_ray-young" / f"{LOCK}.new").touch()
    assert remove_abandoned(tmp_path) == [] and (tmp_path / "sat_ray-young").is_dir()


def test_a_machine_too_busy_to_start_ray_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray._private import node

    from sat_ray.integrations.ray.session import ray_session

    text = "The current node timed out during startup. This "
    assert text in inspect.getsource(node)

    def too_slow(**settings: object) -> None:
        raise Exception(text)

    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with (
        pytest.raises(TimeoutError, match="did not start on this machine within 30 s"),
        ray_session(),
    ):
        pass


def test_the_folder_around_rays_own_is_closed_and_one_of_somebody_else_is_not_removed(
    tmp_path: Path,
) -> None:
    with session_folder(tmp_path) as folder:
        (Path(folder) / RAY).chmod(0o1777)  # as Ray does
        assert is_private_folder(Path(folder))
    for name, mode in (("sat_ray-open", 0o755), ("sat_ray-shared", 0o770)):
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK).touch()
        (tmp_path / name).chmod(mode)
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    (target / LOCK).touch()
    (tmp_path / "sat_ray-link").symlink_to(target)
    assert remove_abandoned(tmp_path) == []
    assert (target / LOCK).exists()


def test_a_file_system_that_keeps_no_modes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tempfile.mkdtemp

    def open_to_all(**settings: str) -> str:
        folder = made(**settings)
        Path(folder).chmod(0o777)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", open_to_all)
    with (
        pytest.raises(PermissionError, match="set TMPDIR to a folder on a local disk"),
        session_folder(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused_with_the_way_out() -> None:
    require_short(Path("/tmp"))
    for folder in ("/tmp/" + 60 * "x", "/tmp/" + 30 * "é"):  # bytes count, not letters
        with pytest.raises(
            ValueError, match=r"bytes too long, got /tmp/.*107 bytes; set TMPDIR to a folder"
        ) as error:
            require_short(Path(folder))
        assert "\n" not in str(error.value)
