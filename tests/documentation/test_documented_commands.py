"""Every command and Python block of README and docs/: run as pasted, planned, or excused.

What runs offline in seconds (help, dry runs, status, compare, Python on files) is pasted into a
fresh shell in a clone with an environment, the blocks of a page one after the other. The other
commands are planned by their own parser. What cannot run here at all is in EXCUSED and
EXCUSED_PYTHON, with a reason.
"""

import ast
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from listeners import free_port
from sweeps import ROOT, parsed

from sat_ray.attacks import AttackSpec
from sat_ray.checkpoint import load_model, save_model
from sat_ray.evaluation import evaluate
from sat_ray.integrations.command_line import compare, export, status
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.parsing import parse_options
from sat_ray.integrations.mlflow import MlflowTracker
from sat_ray.integrations.mlflow.projection.registry import ALIAS, registered_name
from sat_ray.models import Normalized, build_model
from sat_ray.models.export import export_model
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.tasks import Dataset
from sat_ray.threat import ThreatModel
from sat_ray.utils.serialization import to_json

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAGES = ("sweep", "prepare", "search", "train", "card", "evaluate", "report")
# What can neither be run nor planned here, by its first words, and why.
EXCUSED = {
    "ray job submit": (
        "needs a running Ray cluster (tests/integrations/ray/test_job_submission.py submits to a "
        "real one); the job's own command is planned"
    ),
    "python -m tests.kubernetes.machine": "needs root and an hour; make test-kubernetes needs it",
    "mlflow models serve": "a server that does not end; test_a_served_champion_answers runs it",
}
SERVED = "http://127.0.0.1:5001/"
# Python that cannot be run here, by a part of its text, and why.
EXCUSED_PYTHON = {
    SERVED: "a request to that server; test_a_served_champion_answers sends it",
    "--8<--": "an include; the program it comes from is run by TESTED_ELSEWHERE or "
    "test_bring_your_own.py",
}
VARIABLES = (
    *("SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI", "PYTHONPATH", "KUBECONFIG", "KUBERNETES_NODES"),
)
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
    Storage.at("runs/digits").write("config.yaml", RECIPES["digits"]().as_yaml())
    if "--help" in words:
        with pytest.raises(SystemExit) as end:
            parsed(*words)
        assert end.value.code == 0
    else:
        asked = words if "--dry-run" in words else [*words, "--dry-run"]
        assert "dry run: nothing was touched" in describe(parsed(*asked))


def ask_status(words: list[str]) -> None:
    """Run status for real, on a sweep of that name that was claimed and not begun."""
    Storage.at("runs/digits").write_json("config.json", to_json(RECIPES["digits"]()))
    sys.argv = ["status.py", *words]
    assert status.main(about="") == 0


SCRIPTS: dict[str, Callable[[list[str]], object]] = {
    **{f"pipelines/{name}.py": plan for name in STAGES},
    "pipelines/status.py": ask_status,
    # run for real by tests/report/test_comparison.py and tests/evaluation/test_external.py
    "pipelines/compare.py": lambda words: compare.parse(words, about=""),
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
    elif words == ["source", ".venv/bin/activate"]:
        pass  # run by every page that is pasted
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


def runs_here(command: str) -> bool:
    """Say whether a command runs offline within seconds."""
    words = shlex.split(command, comments=True)
    if words[:1] != ["python"] or not words[1].startswith("pipelines/"):
        return False
    return bool({"--dry-run", "--help"} & {*words}) or words[1].endswith(
        ("status.py", "compare.py")
    )


def scripts(page: Path) -> Iterator[tuple[str, str]]:
    """Yield what is pasted from a page, in its order: a name for it, and text for a shell.

    The environment is set where the page says so; what does not run here is left out.
    """
    text = re.sub(r"^ +(?=```)", "", page.read_text(), flags=re.M)
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S):
        if language == "python" and not any(part in body for part in EXCUSED_PYTHON):
            yield body.splitlines()[0], f"python - <<'END'\n{body}END\n"
        for line in body.replace("\\\n", " ").splitlines() if language == "bash" else ():
            if re.match(r" *(source|export) ", line):
                yield "", f"{line}\n"
            elif shlex.split(line, comments=True) and runs_here(line):
                yield line.strip(), f"{line}\n"


def pasted() -> dict[Path, list[tuple[str, str]]]:
    """Return for each page what is pasted, each command where it is shown first."""
    seen: set[tuple[str, ...]] = set()
    found: dict[Path, list[tuple[str, str]]] = {}
    for page in PAGES:
        parts = []
        for name, text in scripts(page):
            words = tuple(shlex.split(text, comments=True))
            if not name or words not in seen:
                parts.append((name, text))
            seen.add(words)
        if any(name for name, _ in parts):
            found[page] = parts
    return found


PASTED = pasted()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a clone with an environment and what a sweep leaves: models, outcomes, a champion."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("sat_ray", "pipelines", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    venv.create(folder / ".venv", symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder / ".venv")})
    installed = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(packages, "clone.pth").write_text(f"{folder}\n{installed}")
    for name in ("mlflow", "uvicorn"):
        _, _, program = Path(sys.executable).with_name(name).read_text().partition("\n")
        script = folder / ".venv" / "bin" / name
        script.write_text(f"#!{script.with_name('python')}\n{program}")
        script.chmod(0o755)
    sweep = Storage.at(folder / "runs" / "digits")
    sweep.write_json("config.json", to_json(RECIPES["digits"]()))
    outcomes = folder / "runs" / "digits" / "outcomes"
    outcomes.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
    labels, ids = np.arange(64) % 10, np.arange(64)
    attack = AttackSpec(threat_model=ThreatModel("linf", 8 / 255), steps=4, step_size=4 / 255)
    shape = {"num_classes": 10, "in_channels": 1, "width": 4}
    rows = []
    for seed in (0, 1):
        model = build_model("small_resnet", activation="relu", seed=seed, **shape).eval()
        table = evaluate(model, images, labels, ids, attacks=[attack])
        pq.write_table(table, outcomes / f"relu-s{seed}.parquet")
        trained = sweep.child(f"checkpoints/train/relu-s{seed}")
        save_model(trained, model.state_dict(), spec=model.spec, about={})
        rows.append({"checkpoint": trained.uri})
    sweep.write_json("leaderboard.json", {"rows": rows})
    register_champion(model, folder / "runs")
    exported, _ = export_model(model, shape=(1, 8, 8), kind="pt2")
    (folder / "champion.pt2").write_bytes(exported)
    return folder


def register_champion(model: Normalized, root: Path) -> None:
    """Register a model as the champion of the recipe `digits`, as its sweep does."""
    database = f"sqlite:///{root}/mlflow.db"
    tracker = MlflowTracker(database, experiment="digits", artifact_root=str(root / "mlartifacts"))
    run = tracker.run("champion", name="champion", tags={}, params={})
    uri = tracker.model(run, model, name="model", input_shape=(1, 8, 8))
    name = registered_name(RECIPES["digits"](), Dataset(uri="", hash="", manifest={}))
    tracker.register(uri, name=name, alias=ALIAS, tags={}, run_id=run)


@pytest.mark.parametrize("page", list(PASTED), ids=lambda page: page.name)
def test_what_a_page_shows_runs_when_it_is_pasted_into_a_fresh_shell(
    page: Path, clone: Path, tmp_path: Path
) -> None:
    parts = PASTED[page]
    script = "".join(
        f"{text}echo $? > {tmp_path}/{number}\n" if name else text
        for number, (name, text) in enumerate(parts)
    )
    shell = {"HOME": str(tmp_path), "PATH": os.defpath}
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"], cwd=clone, env=shell, capture_output=True, text=True
    )
    for number, (name, _) in enumerate(parts):
        if name:
            status = (tmp_path / str(number)).read_text().strip()
            assert status == "0", f"{page.name}: {name} ended with {status}\n{done.stdout}"
    planned = sum("--dry-run" in name for name, _ in parts)
    assert done.stdout.count("dry run: nothing was touched") == planned


@pytest.mark.fault
def test_a_served_champion_answers(clone: Path, tmp_path: Path) -> None:
    """The commands of docs/how-to/use-the-winner.md, on a port that is free here."""
    page = (ROOT / "docs" / "how-to" / "use-the-winner.md").read_text()
    (served,) = [line for line in page.splitlines() if " mlflow models serve " in line]
    (request,) = [body for body in re.findall(r"```python\n(.*?)```", page, re.S) if SERVED in body]
    port = free_port()
    assert served.count("-p 5001") == 1
    script = f"source .venv/bin/activate\n{served.replace('-p 5001', f'-p {port}')}"
    shell = {"HOME": str(tmp_path), "PATH": os.defpath, "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = tmp_path / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            ["bash", "-c", script],
            cwd=clone,
            env=shell,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    asked = [sys.executable, "-c", request.replace("5001", str(port))]
    deadline = time.monotonic() + 600
    try:
        while (done := subprocess.run(asked, capture_output=True, text=True)).returncode:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(2)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    model = load_model(str(clone / "runs/digits/checkpoints/train/relu-s1"))
    gray = torch.full((1, 1, 8, 8), 0.5)
    logits = torch.tensor(ast.literal_eval(done.stdout))
    torch.testing.assert_close(logits, model(gray).detach(), rtol=1e-4, atol=1e-4)


def included(page: Path) -> str:
    """Return the Python blocks of a page in their order, includes replaced by their lines."""

    def lines(found: re.Match[str]) -> str:
        name, section = found.groups()
        parts = re.split(r"# --8<-- \[(?:start|end):(\w+)\]\n", (ROOT / name).read_text())
        return parts[parts.index(section) + 1]

    text = re.sub(r"^ +(?=```|--8<--)", "", page.read_text(), flags=re.M)
    blocks = "".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    return re.sub(r'^--8<-- "([\w/.]+):(\w+)"\n', lines, blocks, flags=re.M)


def test_the_program_of_from_python_is_shown_whole_and_in_order() -> None:
    """What it does is held by test_from_python.py; pasted block by block it must do the same."""
    program = (ROOT / "docs" / "demos" / "from_python.py").read_text()
    shown = ast.parse(included(ROOT / "docs" / "from-python.md"))
    named = {node.name for node in shown.body if isinstance(node, ast.FunctionDef)}
    wanted = ast.parse(program)
    assert named == {node.name for node in wanted.body if isinstance(node, ast.FunctionDef)}
    assert undefined(ast.unparse(shown)) == ""


@pytest.mark.parametrize(
    ("code", "found"),
    [("x: np.ndarray = 1\nimport numpy as np\n", "np"), ("import math\nmath.pi\n", "")],
)
def test_a_name_that_is_used_before_its_import_is_found(code: str, found: str) -> None:
    assert found in undefined(code) and bool(found) == bool(undefined(code))


def undefined(code: str) -> str:
    """Return what ruff says of names that are not defined where they are used."""
    ruff = [Path(sys.executable).with_name("ruff"), "check", "--isolated", "--select", "F821", "-q"]
    done = subprocess.run([*ruff, "-"], input=code, capture_output=True, text=True)
    return done.stdout


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_activates_the_environment_before_its_first_program(page: Path) -> None:
    words = [shlex.split(line, comments=True) for block in blocks(page) for line in block.commands]
    programs = [i for i, word in enumerate(words) if word[0] in ("python", "ray", "mlflow")]
    if programs:
        assert ["source", ".venv/bin/activate"] in words[: programs[0]]


def test_commands_were_found_on_the_pages_and_every_excuse_is_used() -> None:
    commands = [command for block in BLOCKS for command in block.commands]
    assert len(commands) >= 25 and {block.where.split(",")[0] for block in BLOCKS} >= {
        "README.md",
        "index.md",
        "five-ways.md",
    }
    assert all(any(excused in command for command in commands) for excused in EXCUSED)
    text = "".join(page.read_text() for page in PAGES)
    assert all(excused in text for excused in EXCUSED_PYTHON)
    assert len(PASTED) >= 7


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
