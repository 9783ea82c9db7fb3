"""What is installed: one package and its command. RELEASE=FOLDER checks the files in a folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from repository import ROOT

from sat_ray import __version__
from sat_ray.integrations.command_line.main import COMMANDS, unknown

UV = Path(sys.executable).parent / "uv"


def sources(folder: Path) -> list[str]:
    """Return the files that a package is made of, as paths within the project."""
    kinds = (".py", ".j2")
    found = [path for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    return [path.relative_to(ROOT).as_posix() for path in found]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist and from it the wheel, and return the folder that holds both."""
    if "RELEASE" in os.environ:
        return Path(os.environ["RELEASE"]).resolve()
    copy = tmp_path_factory.mktemp("project")
    for name in ("sat_ray", "pipelines"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [UV, "build", "--offline", "--no-build-isolation", "--python", sys.executable]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    """Open the wheel."""
    return zipfile.ZipFile(built / f"sat_ray-{__version__}-py3-none-any.whl")


def test_the_wheel_puts_one_package_into_site_packages(wheel: zipfile.ZipFile) -> None:
    about = f"sat_ray-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"sat_ray", about}
    assert wheel.read(f"{about}/top_level.txt").decode().split() == ["sat_ray"]


def test_the_wheel_holds_every_source_file_and_the_scripts(wheel: zipfile.ZipFile) -> None:
    scripts = [f"sat_ray/{name}" for name in sources(Path("pipelines"))]
    inside = {name for name in wheel.namelist() if name.startswith("sat_ray/")}
    assert inside == {*sources(Path("sat_ray")), *scripts}


def test_the_sdist_is_complete_without_what_the_wheel_lacks(built: Path) -> None:
    with tarfile.open(built / f"sat_ray-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {*sources(Path("sat_ray")), *sources(Path("pipelines"))}
    assert {*wanted, "pyproject.toml", "setup.py", "README.md", "LICENSE"} <= names


def test_the_installed_command_needs_no_clone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    wheel.extractall(installed)
    about = f"sat_ray-{__version__}.dist-info/entry_points.txt"
    _, _, target = wheel.read(about).decode().strip().partition("sat-ray = ")
    module, _, function = target.partition(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}())"
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "200"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split()[0] for line in shown.stdout.splitlines()[2:]] == list(COMMANDS)
    usage = run("prepare", "--help").stdout
    assert usage.startswith("usage: sat-ray prepare [RECIPE]")
    hint = run("status", "--storage", str(tmp_path)).stdout
    assert hint == f"no sweep in {tmp_path} yet; start one: sat-ray sweep\n"


def test_every_script_is_a_command_with_one_line_about_it() -> None:
    scripts = {path.stem for path in (ROOT / "pipelines").glob("*.py")} - {"__init__"}
    assert set(COMMANDS) == scripts


def test_an_unknown_command_gets_the_nearest_one() -> None:
    assert unknown("swep").startswith("unknown command 'swep'; did you mean sweep?")
    assert "choose card, compare" in unknown("fly")
