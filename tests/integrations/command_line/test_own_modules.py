"""The user's own modules are found whatever their names, also those of this package's commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from sat_ray.utils.import_string import resolve

COMMANDS = ROOT / "pipelines"
CODE = """
import json, os, sys
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.utils.import_string import resolve
found = {}
def look():
    for name in json.loads(sys.argv[1]):
        found[name] = resolve(f"{name}:part", what="model")()
status = exit_status(look)
print(json.dumps([status, found, sys.path[0]]))
"""


def run(names: list[str], folder: Path, *, script: Path) -> list[object]:
    """Resolve `name:part` for every name from a script that lies among the commands."""
    script.write_text(CODE)
    environment = os.environ | {"PYTHONPATH": str(COMMANDS.parent)}
    command = [sys.executable, str(script), json.dumps(names)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: list[object] = json.loads(done.stdout.splitlines()[-1])
    return [*answer, done.stderr]


def test_a_module_named_as_a_command_is_the_users_own(tmp_path: Path) -> None:
    names = sorted(path.stem for path in COMMANDS.glob("*.py") if path.stem != "__init__")
    here = tmp_path / "mine"
    here.mkdir()
    for name in names:
        (here / f"{name}.py").write_text(f"def part():\n    return 'my {name}'\n")
    script = COMMANDS / f"_test_{os.getpid()}.py"
    try:
        status, found, first, _ = run(names, here, script=script)
    finally:
        script.unlink()
    assert status == 0
    assert found == {name: f"my {name}" for name in names}
    assert first == str(here)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("types", "has the name of another module, which is loaded already ("),
        ("sys", "has the name of another module, which is loaded already (built into Python)"),
        ("ray", "has the name of a package that sweeps import"),
        ("ray.nets", "has the name of a package that sweeps import"),
    ],
)
def test_a_module_that_another_one_hides_or_that_hides_one_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("def part(): return 1\n")
    with pytest.raises(ValueError) as caught:
        resolve(f"{name}:part", what="model")
    said = str(caught.value)
    assert f"{file} {message}" in said and said.endswith("; rename the file") and "\n" not in said


def test_a_command_is_never_taken_for_a_module_that_is_not_there(tmp_path: Path) -> None:
    script = COMMANDS / f"_test_{os.getpid()}.py"
    try:
        status, found, _, said = run(["train"], tmp_path, script=script)
    finally:
        script.unlink()
    assert (status, found) == (2, {})
    assert "module train cannot be imported (ModuleNotFoundError" in str(said)
