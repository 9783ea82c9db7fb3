"""Where a sweep stands, from its storage alone, while it runs or after it stopped."""

import dataclasses
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import tyro

from sat_ray.integrations.command_line.checks.sweep_folder import require_there, storage_root
from sat_ray.integrations.command_line.parsing import (
    AllowCode,
    parse_options,
    parse_recipe,
    sweep_name,
)
from sat_ray.integrations.command_line.process.exit_status import exit_status
from sat_ray.integrations.command_line.process.invocation import spelled
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.recipes import DEFAULT, RECIPES
from sat_ray.sweep.stage_status import Best, StageStatus
from sat_ray.sweep.status import SweepStatus, Unfinished, read_status, sweeps_in
from sat_ray.utils.import_string import confirm, first_line
from sat_ray.utils.names import check_name, printable
from sat_ray.utils.serialization import flatten, to_json


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which sweep, where, and for whom."""

    name: tyro.conf.Positional[str] = ""
    """A sweep: its recipe or its name; empty: every one."""
    storage: str = ""
    """Folder or s3://bucket/prefix; empty: SAT_RAY_STORAGE, else ./runs."""
    json: bool = False
    """Print JSON."""
    allow_code: AllowCode = ()


def main(*, about: str | None) -> int:
    """Answer, and return the exit status: 2 where there is no such storage or sweep."""

    def act() -> None:
        asked = parse_options(sys.argv[1:], Asked(), about=about or "")
        text = answer(asked, storage_root(asked.storage))
        print(text if asked.json else printable(text, kept="\n"))

    return exit_status(act)


def answer(asked: Asked, root: Storage) -> str:
    """Return what was asked for as text. Code that a stored config names is not imported."""
    confirm(asked.allow_code)
    require_there(root)
    names = sweeps_in(root)
    if asked.name:
        if names and asked.name not in root.folders():
            check_name(asked.name, names, field="sweep")
        found = read_status(root, asked.name)
        if asked.json:
            return json.dumps(as_json(found), indent=2, ensure_ascii=False)
        return describe(found, root, now=time.time())
    with ThreadPoolExecutor(8) as pool:
        every = list(pool.map(lambda name: _status_or_reason(root, name), names))
    if asked.json:
        values = [
            {"name": name, "unread": one} if isinstance(one, str) else as_json(one)
            for name, one in zip(names, every, strict=True)
        ]
        return json.dumps(values, indent=2, ensure_ascii=False)
    width = max(map(len, names), default=0)
    shown = [
        f"not read: {one}" if isinstance(one, str) else line(one, now=time.time()) for one in every
    ]
    lines = [f"{name:<{width}}  {text}" for name, text in zip(names, shown, strict=True)]
    return "\n".join(lines) or f"no sweep in {root.uri} yet; start one: {spelled('sweep')}"


def _status_or_reason(root: Storage, name: str) -> SweepStatus | str:
    """Return a sweep's status, or why it is not read, so that the other sweeps are still shown."""
    try:
        return read_status(root, name)
    except (ValueError, OSError) as error:
        return first_line(error)


def as_json(found: SweepStatus) -> dict[str, Any]:
    """Return the status as plain JSON values."""
    stages = [dataclasses.asdict(stage) | {"complete": stage.complete} for stage in found.stages]
    best = dataclasses.asdict(found.best) if found.best is not None else None
    driver = dataclasses.asdict(found.driver) if found.driver is not None else None
    return {
        "name": found.name,
        "uri": found.uri,
        "recipe": found.config.recipe,
        "prepared": found.prepared,
        "stages": stages,
        "under_way": found.under_way,
        "best": best,
        "accelerator_seconds": sum(stage.accelerator_seconds for stage in found.stages),
        "last_commit": found.last_commit,
        "driver": driver,
        "done": bool(found.report),
        "report": found.report,
        "cut": found.cut,
        "unfinished": [dataclasses.asdict(model) for model in found.unfinished],
    }


def line(found: SweepStatus, *, now: float) -> str:
    """Return one sweep's status as one line."""
    stage = found.current
    where = "done" if found.report else "report not written"
    if stage is not None and not found.report:
        where = f"{stage.name} {_units(stage)}"
    best = [f"best {_best(found.best)}"] if found.best is not None else []
    driver = {None: "driver unknown", True: "driver at work", False: "no driver"}[
        found.driver.alive if found.driver else False
    ]
    return " · ".join([where, driver, *best, f"last record {_ago(found.last_commit, now=now)}"])


def describe(found: SweepStatus, root: Storage, *, now: float) -> str:
    """Return one sweep's status as a page."""
    config = found.config
    heads = ("stage", "done", "images/s", "accelerator-s", "best on validation")
    rows = [("prepare", "yes" if found.prepared else "no", "", "", ""), *map(_row, found.stages)]
    rows.append(("report", "yes" if found.report else "no", "", "", ""))
    moment = (
        ""
        if found.last_commit is None
        else f" ({datetime.fromtimestamp(found.last_commit, UTC):%Y-%m-%d %H:%M:%S} UTC)"
    )
    facts = {
        "last record": _ago(found.last_commit, now=now) + moment,
        "driver": _driver(found),
        "left": _left(found),
        "next": _next(found, root),
    }
    if found.cut:
        facts["search"] = found.cut
    if found.unfinished:
        facts["robust"] = "; ".join(map(_robust_at_most, found.unfinished))
    if found.under_way:
        facts["under way"] = (
            f"{found.under_way} training(s) with a saved state, taken up where they stopped"
        )
    others = sum(stage.other_environment for stage in found.stages)
    if others:
        facts["not counted"] = (
            f"{others} result(s) of another numerical environment (torch, device, threads, slots) "
            "or of other weights"
        )
    return "\n".join(
        [
            f"sweep {found.name} in {root.uri}",
            f"{config.data.dataset} · {config.model.name} · {config.threat_model} · "
            f"{config.search.method} search over {len(config.search.points())} "
            f"configurations · {len(config.final.seeds)} seeds",
            "",
            *(_columns(row) for row in (heads, *rows)),
            "",
            *(f"{name:<12} {text}" for name, text in facts.items()),
        ]
    )


def _robust_at_most(model: Unfinished) -> str:
    share = f"{100 * model.robust_at_most:.1f} %"
    return f"{model.name} at most {share} ({model.seen:,} of {model.total:,} images attacked)"


def _columns(row: tuple[str, ...]) -> str:
    name, done, rate, seconds, best = row
    return f"{name:<11} {done:>10} {rate:>10} {seconds:>14}   {best}".rstrip()


def _row(stage: StageStatus) -> tuple[str, ...]:
    rate = "" if stage.images_per_second is None else f"{stage.images_per_second:,.0f}"
    best = "" if stage.best is None else _best(stage.best)
    return (
        stage.name,
        _units(stage),
        rate,
        f"{stage.accelerator_seconds:,.1f}" if stage.done else "",
        best,
    )


def _units(stage: StageStatus) -> str:
    if stage.planned is None:
        return f"{stage.done}"
    return f"{stage.done}/{'≤' if stage.at_most else ''}{stage.planned}"


def _best(best: Best) -> str:
    of = f", mean of {best.models} seeds" if best.models > 1 else ""
    return f"{best.name}: {100 * best.val_robust_accuracy:.1f} % robust{of}"


def _driver(found: SweepStatus) -> str:
    if found.driver is None:
        return "no driver"
    who = f"process {found.driver.pid} on {found.driver.host}"
    if found.driver.alive is None:
        return f"driver unknown: the last was {who}, which cannot be seen from this machine"
    return f"driver at work ({who})" if found.driver.alive else f"no driver (the last was {who})"


def _left(found: SweepStatus) -> str:
    if found.report:
        return "nothing"
    open_stages = [stage for stage in found.stages if not stage.complete]
    known = [
        f"{stage.name} about {_duration(stage.seconds_left)}"
        for stage in open_stages
        if stage.seconds_left is not None
    ]
    unknown = [stage.name for stage in open_stages if stage.seconds_left is None]
    if unknown:
        known.append(f"{', '.join(unknown)}: not known before the first result")
    return "; ".join(known) or "the report"


def _next(found: SweepStatus, root: Storage) -> str:
    if found.report:
        return f"done; the report: {found.report}"
    if found.driver is not None and found.driver.alive:
        return (
            "nothing to do, it goes on by itself; "
            "a Ctrl-C of the driver keeps all that is committed"
        )
    command = command_of(found, root) or "the command that it was started with"
    return f"go on where it stopped: {command}"


def command_of(found: SweepStatus, root: Storage) -> str:
    """Return a command that goes on with a sweep; "" where no recipe leads to its config."""
    if found.config.recipe not in RECIPES:
        return ""
    base = RECIPES[found.config.recipe]()
    ours, theirs = flatten(to_json(found.config)), flatten(to_json(base))
    words = [
        found.config.recipe,
        *(
            word
            for name in ours
            if ours[name] != theirs.get(name)
            for word in _words(name, ours[name])
        ),
    ]
    if found.name != sweep_name("", found.config, base):
        words += ["--name", found.name]
    if root != storage_root(""):
        words += ["--storage", root.uri]
    return spelled("sweep", words) if _parses_to(words, found.config) else ""


def _words(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"{option.rpartition('.')[0]}.no-{option.rpartition('.')[2]}"]
    return [option, *map(str, value)] if isinstance(value, list) else [option, str(value)]


def _parses_to(words: list[str], config: SweepConfig) -> bool:
    try:
        return parse_recipe(words, RECIPES, default=DEFAULT, about="")[0] == config
    except ValueError:
        return False


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _ago(moment: float | None, *, now: float) -> str:
    if moment is None:
        return "none yet"
    return f"{_duration(max(0.0, now - moment))} ago"
