"""Run the real commands, as a user would, and read what they leave."""

import json
import os
import subprocess
import sys
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

from repository import ROOT

from sat_ray.checkpoint import save_model
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources.registry import DATASETS
from sat_ray.integrations import stages
from sat_ray.integrations.command_line.checks.claims import claim_folder, sweep_of
from sat_ray.integrations.command_line.parsing import Command, parse
from sat_ray.models import Normalized
from sat_ray.storage.json_shape import RelativePath
from sat_ray.storage.store import Storage
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.records.shapes import Configuration
from sat_ray.sweep.records.store import Record, Records, Stage
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN, Dataset

MEASURED = {
    "accelerator_seconds",
    "cost",
    "train_images_per_second",
    "checkpoint",
    "outcomes",
    "strong_outcomes",
    "mlflow_run_id",
}

# python -c WITHOUT_RAY SCRIPT ...: run a command and see that it loaded neither ray nor mlflow
WITHOUT_RAY = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
assert not {"ray", "mlflow"} & set(sys.modules)
"""

# Imports a module once, then runs each command in a forked process of its own: real exit statuses
# and streams, without the seconds of imports each. Of the heavy packages it notes which were loaded
# and the chain of imports that pulled each in.
FORKING = """
import builtins, importlib, json, os, runpy, sys
heavy, found, plain, stack = set(json.loads(sys.argv[2])), {}, builtins.__import__, []
def watched(name, names=None, *rest):
    top = name.partition(".")[0]
    if top in heavy and top not in sys.modules and top not in found:
        found[top] = " > ".join([*stack, (names or {}).get("__name__", "?"), top])
    stack.append((names or {}).get("__name__", "?"))
    try:
        return plain(name, names, *rest)
    finally:
        stack.pop()
builtins.__import__ = watched
importlib.import_module(sys.argv[1])
def run(number, argv):
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{number}.{name}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv, status = argv, 0
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        with open(f"{number}.loaded", "w") as stream:
            stream.writelines(f"{name}: {chain}\\n" for name, chain in sorted(found.items()))
        os._exit(status)  # tearing down what was imported takes longer than the command
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps([run(number, argv) for number, argv in enumerate(json.load(sys.stdin))]))
"""


def environment(**changes: str) -> dict[str, str]:
    """Return this environment without anything that would redirect a sweep, plus changes."""
    dropped = ("RAY_ADDRESS", "SAT_RAY_STORAGE", "MLFLOW_TRACKING_URI", "RAY_AUTH_MODE")
    return {name: value for name, value in os.environ.items() if name not in dropped} | changes


def pipeline(name: str, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run one of the pipeline commands and capture what it prints."""
    command = [sys.executable, str(ROOT / "pipelines" / f"{name}.py"), *arguments]
    settings: dict[str, Any] = {
        "capture_output": True,
        "text": True,
        "timeout": 900,
        "env": environment(),
    }
    return subprocess.run(command, check=False, **(settings | kwargs))


@dataclass(frozen=True)
class Ended:
    """What a command left. loaded: a line for each heavy package."""

    status: int
    out: str
    err: str
    loaded: str


def pipelines(
    commands: Sequence[tuple[str, Sequence[str]]],
    folder: Path,
    *,
    imported: str,
    heavy: Collection[str] = (),
    **variables: str,
) -> list[Ended]:
    """Run pipeline commands in `folder`, (name, words) each, from a process that has imported a
    module. heavy: packages whose loading is noted.
    """
    scripts = [[str(ROOT / "pipelines" / f"{name}.py"), *words] for name, words in commands]
    done = subprocess.run(
        [sys.executable, "-c", FORKING, imported, json.dumps(sorted(heavy))],
        input=json.dumps(scripts),
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT), **variables),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout.splitlines()[-1])

    def text(number: int, kind: str) -> str:
        file = folder / f"{number}.{kind}"
        return file.read_text() if file.exists() else ""

    return [
        Ended(status, *(text(number, kind) for kind in ("out", "err", "loaded")))
        for number, status in enumerate(statuses)
    ]


def start(name: str, *arguments: str, **kwargs: Any) -> "subprocess.Popen[bytes]":
    """Start one of the pipeline commands."""
    command = [sys.executable, str(ROOT / "pipelines" / f"{name}.py"), *arguments]
    return subprocess.Popen(command, **({"env": environment()} | kwargs))


def parsed(*words: str) -> Command:
    """Read the words of a command as a stage of the pipeline does."""
    return parse(words, RECIPES, default=DEFAULT, about="")


def prepare(*arguments: str) -> None:
    """Claim a sweep's folder and prepare its data as the driver and its first stage do,
    without a Ray for it.
    """
    command = parsed(*arguments)
    claim_folder(command)
    stages.prepare(sweep_of(command))


def leaderboard(folder: Path) -> dict[str, Any]:
    """Read a sweep's leaderboard."""
    board: dict[str, Any] = json.loads((folder / "leaderboard.json").read_text())
    return board


def numbers(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows without what is measured or depends on the place:
    what two runs of one sweep must share.
    """
    rows = [
        {name: value for name, value in row.items() if name not in MEASURED}
        for row in board["rows"]
    ]
    return sorted(rows, key=lambda row: json.dumps([row["configuration"], row["seed"]]))


def records(folder: Path, stage: str) -> dict[str, dict[str, Any]]:
    """Return the committed records of a stage by key."""
    return {
        path.stem: json.loads(path.read_text())
        for path in (folder / "state" / stage).glob("*.json")
    }


def digits_shards(folder: Path, *, rows: int = 512) -> Dataset:
    """Write the digits as shards into a folder."""
    write_dataset(DATASETS["digits"], Storage.at(folder), rows_per_shard=rows)
    found = Dataset.open(str(folder))
    assert found is not None
    return found


def filled(
    stage: Stage, payload: dict[str, Any], inputs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return payload and inputs for `Records.commit`, with every field that the stage must have."""
    shapes = typing.get_type_hints(stage.shape, include_extras=True)
    given = {"payload": payload, "inputs": inputs or {}}
    return {name: _joined(_empty(shapes[name]), given[name]) for name in given}


def _empty(shape: Any) -> Any:
    if shape == RelativePath:
        return "x"
    if shape is Configuration:
        return {"activation": "relu"}
    if typing.get_origin(shape) is Annotated:
        return _empty(typing.get_args(shape)[0])
    if typing.is_typeddict(shape):
        hints = typing.get_type_hints(shape, include_extras=True)
        return {name: _empty(hints[name]) for name in hints if name in shape.__required_keys__}
    origin = typing.get_origin(shape) or shape
    if origin is tuple:
        return [_empty(part) for part in typing.get_args(shape)]
    return None if origin in (Union, types.UnionType) else origin()


def _joined(empty: Any, given: Any) -> Any:
    if not (isinstance(empty, dict) and isinstance(given, dict)):
        return given
    return empty | {name: _joined(empty.get(name), one) for name, one in given.items()}


def record_of(configuration: SearchPoint) -> Record:
    """Return what a training of this configuration would have left."""
    payload = {
        "name": f"{configuration.slug}-s0",
        "configuration": configuration.to_json(),
        "seed": 0,
        "path": configuration.slug,
        "sha256": "0",
        "val_robust_accuracy": 0.5,
    }
    return Record(
        stage="train", key="k", inputs={}, payload=payload, code={}, created=0.0, seconds=0.0
    )


def trained(
    model: Normalized, records: Records, *, activation: str = "relu", val: float = 0.5
) -> Record:
    """Commit a network as a training of a sweep. val: what training measured on validation."""
    configuration = SearchPoint(activation=activation)
    assert model.spec is not None
    folder = records.storage.child(f"checkpoints/{configuration.slug}")
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    payload = {
        "name": f"{configuration.slug}-s0",
        "configuration": configuration.to_json(),
        "seed": 0,
        "path": f"checkpoints/{configuration.slug}",
        "sha256": save_model(folder, weights, spec=model.spec, about={}),
        "val_robust_accuracy": val,
    }
    return records.commit(TRAIN, configuration.slug, **filled(TRAIN, payload), seconds=1.0)
