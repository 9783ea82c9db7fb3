"""What is installed is what was locked: every package by version and by the sha256 of its files."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.requirements import Requirement
from repository import ROOT, locked

LOCKS = ("requirements.lock", "requirements-no-deps.lock")


@pytest.mark.parametrize(
    "name", [*LOCKS, *(f"cluster/images/requirements-{image}.txt" for image in ("ray", "mlflow"))]
)
def test_every_locked_package_has_a_version_and_a_hash(name: str) -> None:
    packages = locked(name)
    assert packages
    for package, (_, hashes) in packages.items():
        assert hashes, f"{name}: {package} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), (
            f"{name}: {package}"
        )


def test_nothing_is_installed_without_its_hash() -> None:
    installs = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "uv pip install" in line
    ]
    from_locks = [line for line in installs if "-r requirements" in line]
    assert sorted(line.rsplit("-r ", 1)[1] for line in from_locks) == sorted(LOCKS)
    assert all("--require-hashes" in line for line in from_locks)
    assert [
        line for line in installs if line not in from_locks and "--no-deps --editable ." not in line
    ] == []


@pytest.mark.parametrize("name", LOCKS)
def test_what_is_installed_is_what_is_locked(name: str) -> None:
    wrong = {}
    for package, (wanted, _) in locked(name).items():
        try:
            if version(package).partition("+")[0] != wanted.partition("+")[0]:
                wrong[package] = version(package)
        except PackageNotFoundError:
            continue  # of another platform, or not needed by what was installed here
    assert wrong == {}


def test_the_package_asks_for_ranges_that_hold_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {one.name: one for one in map(Requirement, project["dependencies"])}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {
        one.name: one
        for one in map(Requirement, (line for line in lines if line and line[0] != "#"))
    }
    assert set(ranges) == set(pins)
    for name, pin in pins.items():
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert exact.version in ranges[name].specifier, (
            f"{name} {exact.version} is outside {ranges[name]}"
        )
        assert "==" not in str(ranges[name].specifier), (
            f"{name} is pinned in the package's metadata"
        )
        assert pin.extras == ranges[name].extras


def test_the_package_names_its_readme_and_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / project["readme"]).is_file()
    assert project["license"] == "Apache-2.0"
    assert all("Apache License" in (ROOT / name).read_text() for name in project["license-files"])
