"""What faults did, as docs/reference/faults.json and the tables docs/reference/faults.md.

The page also shows what single tests of faults do, and what was seen on a Kubernetes
(docs/kubernetes.json). python tests/faults/report.py makes the page again from these files.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "helpers")]

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
    (docs / "faults.json").write_text(
        json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )
    write_page(docs)


def write_page(docs: Path) -> None:
    """Write the page again from what was measured."""
    found = json.loads((docs / "faults.json").read_text())
    kubernetes = docs.parent / "kubernetes.json"
    seen = json.loads(kubernetes.read_text())["scenarios"] if kubernetes.exists() else {}
    (docs / "faults.md").write_text(page(found, seen))


def page(found: dict[str, Any], kubernetes: dict[str, dict[str, Any]]) -> str:
    """Return the page. kubernetes: what was seen there, by scenario."""
    lines, quickest = [HEAD], found["undisturbed"]
    for name, kind in KINDS.items():
        one = found["kinds"].get(name)
        what = (kind.inject.__doc__ or "").rstrip(".")
        effect, numbers, count = (
            ("not measured", ["–", "–"], 0)
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
        if failed := _failed(chaos):
            lines += ["", *failed]
    lines += ["", ONE_MACHINE, *map(_tried, found.get("one_machine", []))]
    lines += ["", KUBERNETES, *_seen_on(kubernetes)]
    return "\n".join(lines) + "\n"


def _tried(one: dict[str, Any]) -> str:
    """Return the line of a fault that a test puts in on one machine."""
    seconds = one.get("seconds", NOT_MEASURED)
    return f"| {one['fault']} | {one['effect']} | {seconds} | `{one['test']}` |"


def _seen_on(kubernetes: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the sweeps on a Kubernetes, the undisturbed one first."""
    sweeps = {name: one for name, one in kubernetes.items() if "equal_numbers" in one}
    lines = []
    for name in sorted(sweeps, key=lambda name: (SEVERAL in name, UNDISTURBED not in name)):
        one = sweeps[name]
        figures = [_figure(one.get(key)) for key in ("first worker ready", "result", "zero pods")]
        memory = _figure(one.get("peak_mib", {}).get("all pods"))
        reused = one.get("reused", "–")
        equal = "yes" if one["equal_numbers"] else "**no**"
        lines.append(f"| {' | '.join([name, *figures, memory, reused, equal])} |")
    return lines


def _figure(value: float | str | None) -> str:
    """Return a measured number without its decimals, or that there is none."""
    return NOT_MEASURED if value is None else value if isinstance(value, str) else f"{value:.0f}"


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

Made by `python tests/run_faults.py` (root on Linux). It runs a small sweep on a Ray of a head and
two nodes, each a host of its own, with an S3 server, PostgreSQL and an MLflow server with logins,
all real. *Survived* means:

- the leaderboard's numbers and the outcome files are those of the undisturbed sweep;
- every test image is there once for each model;
- no MLflow run is unfinished or there twice, and no placement group is left;
- no password or key is in a log, an object or the database.

*Seconds lost* are those of the stage, compared with the quickest undisturbed sweep (of the whole
sweep for `head`). On a busy machine they vary by more than small faults cost. *The bound* is the
unit that is lost whole when its process dies, because only a finished unit is committed. *Seconds
repeated* are an upper bound: the work since the last commit or checkpoint, or the longest unit of
the stage, for each unit that was interrupted. An outage of MLflow or its database delays no stage:
the runs are written once it is back, and the sweep waits for that at its end.

{columns}
| :-- | :-- | :-- | :-- | --: | --: | :-- | --: |""".format(columns=f"| {' | '.join(COLUMNS)} |")
CHAOS = """## Chaos

{count} faults in {sweeps} sweeps, up to three in a stage one after the other. A seed chooses their
kinds, processes and nodes. The table shows the most that one fault of each kind cost. Where a stage
had several faults, the seconds lost are those of the whole sweep. A run that was stopped has fewer
faults than its command names.
"""
NOT_MEASURED = "not measured"
UNDISTURBED, SEVERAL = "undisturbed", "several nodes"  # in names of scenarios on a Kubernetes
ONE_MACHINE = """## On one machine

What tests do to a small sweep or a task on a private Ray (`make test-faults`). *Seconds* are those
of the whole test, its sweeps included, on 2 CPU cores that other work shared; what the fault itself
cost was not measured.

| what is done | effect | seconds | test |
| :-- | :-- | --: | :-- |"""
KUBERNETES = """## On a Kubernetes

Sweeps on a [Kubernetes of one machine](../how-to/kubernetes-on-one-machine.md): with
`overlays/laptop` on one node, or on *several nodes*, where `overlays/autoscaling` and the others
have PostgreSQL and S3 outside the cluster. Seconds count from `make submit` where nothing else is
said. The machine was not equally busy in all of them, and the recipe became a third faster before
four of them (worker, operator, API server, Redis), so their differences are no cost. *MiB* are the
most that all pods took at one moment, without page cache. *Reused*: what the same command, given
again, found committed. *Equal numbers*: leaderboard rows and outcome files are those of the same
image in one pod without a cluster.

| what is done | s to a worker | s to the result | s to no workers | MiB | reused | equal numbers |
| :-- | --: | --: | --: | --: | :-- | :-- |"""
TABLE = """| kind | injections | survived | seconds lost | s repeated, at most |
| :-- | --: | --: | --: | --: |"""


if __name__ == "__main__":
    write_page(Path(__file__).parents[2] / "docs" / "reference")
