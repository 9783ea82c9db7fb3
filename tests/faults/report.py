"""What faults did, as docs/faults.json and the table docs/faults.md."""

import json
import os
from pathlib import Path
from typing import Any

from faults.injections import KINDS, STAGES
from faults.victim import Left

SWEEP = "sweep"  # beside the names of stages: all of them together


def merged(
    docs: Path,
    struck: list[dict[str, Any]],
    undisturbed: Left,
    *,
    chaos: bool,
    outage: float,
    command: str,
) -> dict[str, Any]:
    """Put what was found now over what an earlier run found: the last run of a kind counts, chaos
    has a place of its own.

    Of the undisturbed sweeps of all runs the quickest counts, stage by stage: other work on the
    machine only ever adds to it.
    """
    file = docs / "faults.json"
    found: dict[str, Any] = (
        json.loads(file.read_text())
        if file.exists()
        else {"kinds": {}, "chaos": [], "undisturbed": {}}
    )
    now = undisturbed.stages | {SWEEP: undisturbed.seconds}
    found["undisturbed"] = {
        stage: min(seconds, found["undisturbed"].get(stage, seconds))
        for stage, seconds in now.items()
    }
    conditions = {
        "command": command,
        "outage_seconds": outage,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
    }
    new = [one | conditions for one in struck]
    if chaos:
        return found | {"chaos": new}
    for one in new:
        found["kinds"][one["kind"]] = {
            "injections": sum(other["kind"] == one["kind"] for other in new)
        } | one
    return found


def write(found: dict[str, Any], docs: Path) -> None:
    """Write both files."""
    (docs / "faults.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    (docs / "faults.md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    """Return the page."""
    lines, quickest = [HEAD], found["undisturbed"]
    for name, kind in KINDS.items():
        one = found["kinds"].get(name)
        what = (kind.inject.__doc__ or "").rstrip(".")
        effect, numbers, count = (
            ("not run", ["–", "–"], 0)
            if one is None
            else (_effect(one), _most([one], quickest), one["injections"])
        )
        lines.append(
            f"| {name} | {what} | {kind.stage} | {effect} | {' | '.join(numbers)} | {kind.bound} "
            f"| {count} |"
        )
    lines += ["", *_conditions(list(found["kinds"].values()), quickest)]
    if not (chaos := found["chaos"]):
        lines += ["", "## Chaos", "", "Not run."]
    else:
        lines += [
            "",
            CHAOS.format(count=len(chaos), sweeps=len({one["sweep"] for one in chaos})),
            *_conditions(chaos, quickest),
            "",
            TABLE,
        ]
        for name in KINDS:
            if some := [one for one in chaos if one["kind"] == name]:
                survived = sum(not one["wrong"] for one in some)
                lines.append(
                    f"| {name} | {len(some)} | {survived} | {' | '.join(_most(some, quickest))} |"
                )
        lines += ["", *_failed(chaos)]
    return "\n".join(lines) + "\n"


def brief(text: str) -> str:
    """Return what a page needs of an error with its traceback: its first line,
    and the last that names an error.
    """
    first, *others = text.splitlines() or [""]
    last = next((line for line in reversed(others) if "Error: " in line), "")
    return f"{first} {last}".strip()[:300]


def _effect(one: dict[str, Any]) -> str:
    return (
        "survived"
        if not one["wrong"]
        else "**not survived**: " + one["wrong"][0].splitlines()[0][:120]
    )


def _failed(chaos: list[dict[str, Any]]) -> list[str]:
    """Say for each sweep that did not survive what was done to it and its last error."""
    lines = []
    for sweep in dict.fromkeys(one["sweep"] for one in chaos if one["wrong"]):
        some = [one for one in chaos if one["sweep"] == sweep]
        words = some[0]["wrong"][0].splitlines()
        reason = next((line for line in reversed(words) if "Error: " in line), words[0])
        lines.append(
            f"- **Not survived**: {', '.join(one['kind'] for one in some)} in one sweep. "
            f"{reason[:200]}"
        )
    return lines


def _most(some: list[dict[str, Any]], quickest: dict[str, float]) -> list[str]:
    """Return the most that faults cost: seconds lost, seconds of work repeated."""
    lost = [one["seconds"] - quickest[one["measured"]] for one in some if "seconds" in one]
    repeated = [
        one["repeated_seconds_at_most"] for one in some if "repeated_seconds_at_most" in one
    ]
    return [f"{max(found):.0f}" if found else "–" for found in (lost, repeated)]


def _conditions(some: list[dict[str, Any]], quickest: dict[str, float]) -> list[str]:
    """Say what made the numbers, each run of the command in a line."""
    stages = ", ".join(f"{stage} {quickest[stage]:.0f}" for stage in STAGES)
    commands = list(
        dict.fromkeys((one["command"], one["cpus"], one["outage_seconds"]) for one in some)
    )
    made = [
        f"`{command}` on {cpus} CPU cores, outages of {outage:.0f} s."
        for command, cpus, outage in commands
    ]
    return (
        [" ".join(made), f"The quickest undisturbed sweep took {quickest[SWEEP]:.0f} s ({stages})."]
        if some
        else []
    )


COLUMNS = (
    "kind", "what is done", "during", "effect", "seconds lost", "s repeated, at most",
    "bound of what is repeated", "injections",
)  # fmt: skip
HEAD = """# Faults

Made by `python tests/run_faults.py` (root on Linux): a small sweep on a Ray of a head and two
nodes, each a host of its own, with an S3 server, PostgreSQL and an MLflow server with logins, all
real. *Survived* means: the leaderboard's numbers and the outcome files are those of the undisturbed
sweep, every test image is there once for each model, no MLflow run is unfinished or there twice, no
placement group is left, no password or key is in a log, an object or the database.

Seconds lost are those of the stage against the quickest undisturbed sweep's (of the whole sweep for
`head`): on a machine that is busy with other work they vary by more than small faults cost. The
bound is the unit that is lost whole when its process dies, because only a finished unit is
committed; seconds repeated are measured from above: what ran since the last commit or checkpoint,
or the longest unit of the stage, for each unit that was interrupted. An outage of MLflow or its
database delays no stage: the runs are written once it is back, for which the sweep waits at its
end.

{columns}
| :-- | :-- | :-- | :-- | --: | --: | :-- | --: |""".format(columns=f"| {' | '.join(COLUMNS)} |")
CHAOS = """## Chaos

{count} faults, their kinds, processes and nodes drawn by a seed, in {sweeps} sweeps, up to three in
a stage one after the other; of each kind the most that one cost. Where a stage had several, seconds
lost are those of the whole sweep. A run that was stopped holds fewer faults than its command asked
for.
"""
TABLE = """| kind | injections | survived | seconds lost | s repeated, at most |
| :-- | --: | --: | --: | --: |"""
