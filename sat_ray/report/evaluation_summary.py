"""What an evaluation found, from its merged outcomes: evaluation.json and the table that a person reads."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from sat_ray.attacks import AttackSpec
from sat_ray.evaluation.engine.verdicts import CLEAN_ERROR
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.outcomes import clean_correct_ids, robust_image_ids
from sat_ray.threat import as_255ths


def summary(table: pa.Table, attacks: Sequence[AttackSpec]) -> dict[str, Any]:
    """Count a model's outcomes: accuracies with 95 % Wilson intervals, attack by attack in the order given, and what they cost.

    table: outcomes of all images; robust: survived every attack. passes: of the model, clean predictions not among them.
    """
    n = len(set(table["image_id"].to_pylist()))
    passes = sum(table["passes"].to_pylist())
    return {
        "n": n,
        **_accuracy("clean_accuracy", len(clean_correct_ids(table)), n),
        **_accuracy("robust_accuracy", len(robust_image_ids(table)), n),
        "attacks": [
            _one_attack(table.filter(pc.equal(table["attack"], spec.name)), spec, n)
            for spec in attacks
        ],
        "passes": passes,
        "passes_per_image": passes / n,
    }


def _one_attack(rows: pa.Table, spec: AttackSpec, n: int) -> dict[str, Any]:
    attacked = rows.filter(pc.not_equal(rows["first_broken_step"], CLEAN_ERROR))
    return {
        **spec.to_json(),
        "attacked": len(set(attacked["image_id"].to_pylist())),
        **_accuracy("robust_accuracy", len(robust_image_ids(rows)), n),
        "passes": sum(rows["passes"].to_pylist()),
    }


def _accuracy(name: str, correct: int, n: int) -> dict[str, Any]:
    return {name: correct / n, f"{name}_interval": list(wilson_interval(correct, n))}


def to_terminal(found: dict[str, Any]) -> Table:
    """Draw evaluation.json as a small table, one row per attack."""
    ball = f"{found['threat_model']['norm']} {as_255ths(found['threat_model']['epsilon'])}"
    drawn = Table()
    for column in ("attack", "images attacked", "accuracy after it", "95 % interval", "passes"):
        drawn.add_column(column, justify="left" if column == "attack" else "right")
    drawn.add_row("none (clean)", "", *_percentages(found, "clean_accuracy"), "")
    for attack in found["attacks"]:
        drawn.add_row(
            f"{attack['name']}, {ball}",
            f"{attack['attacked']:,}",
            *_percentages(attack, "robust_accuracy"),
            f"{attack['passes']:,}",
        )
    if len(found["attacks"]) > 1:
        drawn.add_section()
        drawn.add_row(
            f"all of them, {ball}",
            "",
            *_percentages(found, "robust_accuracy"),
            f"{found['passes']:,}",
        )
    return drawn


def claim(found: dict[str, Any]) -> str:
    """Say the result in one sentence that leaves nothing out: norm, epsilon, attack, n, seed and interval."""
    threat, (low, high) = found["threat_model"], found["robust_accuracy_interval"]
    names = " + ".join(
        attack["name"] + (f" x{attack['restarts']}" if attack["restarts"] > 1 else "")
        for attack in found["attacks"]
    )
    part = "" if found["n"] == found["n_split"] else f" of {found['n_split']:,}"
    return (
        f"robust accuracy {100 * found['robust_accuracy']:.2f} % (95 % interval {100 * low:.2f} to {100 * high:.2f}) "
        f"under {threat['norm']} {as_255ths(threat['epsilon'])}, {names}, n = {found['n']:,}{part}, seed {found['seed']}"
    )


def _percentages(found: dict[str, Any], name: str) -> tuple[str, str]:
    low, high = found[f"{name}_interval"]
    return f"{100 * found[name]:.2f} %", f"{100 * low:.2f} to {100 * high:.2f}"
