"""What faults did, as docs/faults.json and the table docs/faults.md."""

import json
import os
from pathlib import Path
from typing import Any

from faults.injections import KINDS
from faults.victim import Left

ROOT = Path(__file__).parent.parent.parent


def merged(docs: Path, struck: list[dict[str, Any]], undisturbed: Left, *, chaos: bool, outage: float) -> dict[str, Any]:
    """Put what was found now over what an earlier run found: the last run of a kind counts, chaos has a place of its own."""
    file = docs / "faults.json"
    before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"kinds": {}, "chaos": []}
    conditions = {"undisturbed_seconds": round(undisturbed.seconds), "undisturbed_stages": undisturbed.stages, "outage_seconds": outage}
    conditions |= {"cpus": os.cpu_count(), "load": round(os.getloadavg()[1], 1)}
    now = [one | conditions for one in struck]
    if chaos:
        return before | {"chaos": now}
    kinds = dict(before["kinds"])
    for one in now:
        kinds[one["kind"]] = {"injections": sum(other["kind"] == one["kind"] for other in now)} | one
    return before | {"kinds": kinds}


def write(found: dict[str, Any], docs: Path) -> None:
    """Write both files."""
    (docs / "faults.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    (docs / "faults.md").write_text(table(found))


def table(found: dict[str, Any]) -> str:
    """Return the page."""
    lines = [HEAD]
    for name, kind in KINDS.items():
        one = found["kinds"].get(name)
        what = (kind.inject.__doc__ or "").rstrip(".")
        if one is None:
            lines.append(f"| {name} | {what} | {kind.stage} | not run | – | – | {kind.bound} | 0 |")
            continue
        effect = "survived" if not one["wrong"] else "**not survived**: " + one["wrong"][0].splitlines()[0][:120]
        lost = f"{one['seconds_lost']:.0f}" if "seconds_lost" in one else "–"
        repeated = f"{one['repeated_seconds_at_most']:.0f}" if "repeated_seconds_at_most" in one else "–"
        lines.append(f"| {name} | {what} | {kind.stage} | {effect} | {lost} | {repeated} | {kind.bound} | {one['injections']} |")
    if chaos := found["chaos"]:
        survived = sum(not one["wrong"] for one in chaos)
        lines.append(f"\nChaos: {len(chaos)} faults of kinds drawn by a seed, {survived} survived.")
    return "\n".join(lines) + "\n"


HEAD = """# Faults

Made by `python tests/run_faults.py` (root on Linux): a small sweep on a Ray of a head and two nodes, each a host of its own, with
an S3 server, PostgreSQL and an MLflow server with logins, all real. *Survived* means: the leaderboard's numbers and the outcome files
are those of the undisturbed sweep, every test image is there once for each model, no MLflow run is unfinished or there twice, no
placement group is left. Seconds lost are those of the stage against the undisturbed sweep's: on a machine that is busy with other work they
vary by more than small faults cost. Work repeated is what ran since the last commit or checkpoint, an upper limit.

| kind | what is done | during | effect | seconds lost | s repeated, at most | bound of what is repeated | injections |
| :-- | :-- | :-- | :-- | --: | --: | :-- | --: |"""
