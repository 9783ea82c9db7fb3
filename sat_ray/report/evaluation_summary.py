"""What an evaluation found, from its merged outcomes: evaluation.json and a table for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sat_ray.attacks import AttackSpec
from sat_ray.evaluation.first_broken_step import CLEAN_ERROR
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.report.formatting import threat_text
from sat_ray.report.table import NAME, Column, Table
from sat_ray.threat import length_text

Interval = Callable[[int, int], tuple[float, float]]
"""The interval of an accuracy from the correct and all images."""


def summary(
    table: pa.Table, attacks: Sequence[AttackSpec], *, interval: Interval = wilson_interval
) -> dict[str, Any]:
    """Count a model's outcomes: accuracies with 95 % intervals, and passes.

    table: outcomes of all images; interval: Wilson's, or an anytime one where the evaluation
    stopped early; attacks: in the order in which they are listed; robust: correct
    under every attack. passes: of the model, clean predictions not among them.
    """
    n = len(set(table["image_id"].to_pylist()))
    passes = sum(table["passes"].to_pylist())
    return {
        "n": n,
        **_accuracy("clean_accuracy", len(clean_correct_ids(table)), n, interval),
        **_accuracy("robust_accuracy", len(robust_image_ids(table)), n, interval),
        "attacks": [
            _one_attack(table.filter(pc.equal(table["attack"], spec.name)), spec, n, interval)
            for spec in attacks
        ],
        "passes": passes,
        "passes_per_image": passes / n,
    }


def _one_attack(rows: pa.Table, spec: AttackSpec, n: int, interval: Interval) -> dict[str, Any]:
    attacked = rows.filter(pc.not_equal(rows["first_broken_step"], CLEAN_ERROR))
    return {
        **spec.to_json(),
        "attacked": len(set(attacked["image_id"].to_pylist())),
        **_accuracy("robust_accuracy", len(robust_image_ids(rows)), n, interval),
        "passes": sum(rows["passes"].to_pylist()),
    }


def _accuracy(name: str, correct: int, n: int, interval: Interval) -> dict[str, Any]:
    return {name: correct / n, f"{name}_interval": list(interval(correct, n))}


def attack_table(found: Mapping[str, Any]) -> Table:
    """Return the table of evaluation.json: the clean accuracy, every attack, and all together."""
    clean = {
        "name": "none (clean)",
        "attacked": None,
        "robust_accuracy": found["clean_accuracy"],
        "robust_accuracy_interval": found["clean_accuracy_interval"],
        "passes": None,
    }
    together = {**found, "name": "all of them", "attacked": None}
    several = len(found["attacks"]) > 1
    columns = [
        Column("attack", _attack_name, kind=NAME),
        Column("images attacked", "attacked", "{:,}".format, missing=""),
        Column("accuracy, %", "robust_accuracy", _percent),
        Column("95 % interval", "robust_accuracy_interval", _percent_interval),
        Column("passes", "passes", "{:,}".format, missing=""),
    ]
    items = [clean, *found["attacks"], *([together] if several else [])]
    sums = [len(items) - 1] if several else []
    return Table(columns, items, title=threat_text(found), sums=sums)


def _attack_name(attack: Mapping[str, Any]) -> str:
    restarts = attack.get("restarts", 1)
    return f"{attack['name']}, {restarts} restarts" if restarts > 1 else str(attack["name"])


def claim(found: dict[str, Any]) -> str:
    """State the result in one sentence with norm, epsilon, attack, n, seed and interval."""
    threat = found["threat_model"]
    names = " + ".join(
        attack["name"] + (f" x{attack['restarts']}" if attack["restarts"] > 1 else "")
        for attack in found["attacks"]
    )
    part = "" if found["n"] == found["n_split"] else f" of {found['n_split']:,}"
    stopped = found.get("stopped")
    about = f" for all {stopped['of']:,} images, at any moment of stopping" if stopped else ""
    return (
        f"robust accuracy {_percent(found['robust_accuracy'])} % "
        f"(95 % interval {_percent_interval(found['robust_accuracy_interval'])}{about}) "
        f"under {threat['norm']} {length_text(threat['norm'], threat['epsilon'])}, {names}, "
        f"n = {found['n']:,}{part}, seed {found['seed']}"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _percent_interval(bounds: Sequence[float]) -> str:
    return f"{_percent(bounds[0])} to {_percent(bounds[1])}"
