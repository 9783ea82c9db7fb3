"""Every command in README and docs/: run for real where that is cheap, planned by its own parser
where it is not, or excused by name.
"""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sweeps import ROOT

from sat_ray.integrations.command_line import compare, export, status
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.parsing import parse, parse_options
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.utils.serialization import to_json

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STAGES = ("sweep", "prepare", "search", "train", "card", "evaluate", "report")
# What cannot be run here at all, by its first words, and why.
EXCUSED = {
    "ray job submit": (
        "needs a running Ray cluster (tests/integrations/ray/test_job_submission.py submits to a "
        "real one); the job's own command is planned"
    ),
    "source .venv/bin/activate": "the environment of `make setup`; the tests run in one already",
    "mlflow models serve": "a server that does not end, on the champion of a finished sweep",
    "curl -d": "asks that server",
}
VARIABLES = ("SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI", "PYTHONPATH")
TESTED_ELSEWHERE = {
    "docs/demos/five_ways.py": "documentation/test_five_ways.py",
    "docs/demos/from_python.py": "documentation/test_from_python.py",
}


@dataclass(frozen=True)
class Block:
    """The commands of one fenced block, which share a shell. where:
    page and number of the block.
    """

    where: str
    commands: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the bash blocks of a page, continued lines joined,
    comments and empty lines left out.
    """
    found = re.findall(
        r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```", page.read_text(), re.M | re.S
    )
    for number, text in enumerate(found, start=1):
        lines = text.replace("\\\n", " ").splitlines()
        yield Block(
            f"{page.name}, block {number}",
            tuple(line for line in lines if shlex.split(line, comments=True)),
        )


BLOCKS = [block for page in PAGES for block in blocks(page)]


def plan(words: list[str]) -> None:
    """Plan a sweep or one of its stages as its own --dry-run would."""
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            parse(words, RECIPES, default=DEFAULT, about="")
        assert end.value.code == 0
    else:
        asked = words if "--dry-run" in words else [*words, "--dry-run"]
        assert "dry run: nothing was touched" in describe(
            parse(asked, RECIPES, default=DEFAULT, about="")
        )


def ask_status(words: list[str]) -> None:
    """Run status for real, on a sweep of that name that was claimed and not begun."""
    Storage.at("runs/digits").write_json("config.json", to_json(RECIPES["digits"]()))
    sys.argv = ["status.py", *words]
    assert status.main() == 0


SCRIPTS: dict[str, Callable[[list[str]], object]] = {
    **{f"pipelines/{name}.py": plan for name in STAGES},
    "pipelines/status.py": ask_status,
    # run for real by tests/report/test_comparison.py and tests/evaluation/test_external.py
    "pipelines/compare.py": compare.parse,
    "pipelines/export.py": lambda words: parse_options(words, export.Asked(), about=""),
}


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run or plan one command; AssertionError names one that no rule covers."""
    while re.match(r"[A-Z_]+=", words[0]):  # VARIABLE=value before a command
        assert words[0].partition("=")[0] in VARIABLES, (
            f"{words[0]} sets no variable that this project reads"
        )
        words = words[1:]
    head, rest = words[0], words[1:]
    if head == "export":
        for name, value in (word.split("=", 1) for word in rest):
            assert name in VARIABLES, f"{name} is no variable that this project reads"
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(str(ROOT / value))
    elif head == "make":
        targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
        assert rest[0] in targets and all("=" in word for word in rest[1:]), (
            f"make {rest}: no such target"
        )
    elif head == "python" and rest[0] in TESTED_ELSEWHERE:
        assert (ROOT / rest[0]).name.removesuffix(".py") in (
            ROOT / "tests" / TESTED_ELSEWHERE[rest[0]]
        ).read_text()
    elif head == "python" and rest[0] == "pipelines/evaluate.py" and "--model" in rest:
        given = parse_options(rest[1:], ExternalOptions(), about="")
        assert given.model and given.data and given.attacks(num_classes=10)
    elif head == "python" and rest[0] in SCRIPTS:
        SCRIPTS[rest[0]](rest[1:])
    else:
        assert any(" ".join(words).startswith(excused) for excused in EXCUSED), (
            f"no rule covers: {shlex.join(words)}"
        )
        if "--" in words:
            check(words[words.index("--") + 1 :], monkeypatch)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_the_documented_commands_do_what_they_say(
    block: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    for name in ("SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for command in block.commands:
        check(shlex.split(command, comments=True), monkeypatch)


def test_commands_were_found_on_the_pages_and_every_excuse_is_used() -> None:
    commands = [command for block in BLOCKS for command in block.commands]
    assert len(commands) >= 25 and {block.where.split(",")[0] for block in BLOCKS} >= {
        "README.md",
        "index.md",
        "five-ways.md",
    }
    assert all(any(excused in command for command in commands) for excused in EXCUSED)


@pytest.mark.parametrize(
    "command",
    [
        "python pipelines/sweep.py --training.epoch 3",
        "python pipelines/missing.py",
        "make everything",
        "kubectl apply -f x",
        "python pipelines/status.py digist",
        "ray job submit -- python pipelines/sweep.py digist",
        "export SAT_RAY_STORE=x",
    ],
)
def test_a_wrong_command_would_be_noticed(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises((AssertionError, ValueError)):
        check(shlex.split(command), monkeypatch)
