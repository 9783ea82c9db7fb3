"""Configurations as parameters of MLflow's runs; records and leaderboard groups as metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.activations.registry import activation_info, alpha_text, curvature_text, display_name
from sat_ray.integrations.mlflow.values import Point
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.search.search_space import SearchPoint

LEARNED = "learned"  # what stands in the place of an alpha that training learns


def compared_params(configuration: SearchPoint) -> dict[str, str | None]:
    """Return what varies between runs, with values that differ in their first ten letters.

    MLflow's parallel coordinates show no more of a value. A learned alpha is an alpha called
    `learned`, and of user-defined code the function's name comes before its module's.
    """
    activation, alpha = _shown(configuration.activation, configuration.alpha)
    attacker, attacker_alpha = _shown(
        configuration.attacker_activation, configuration.attacker_alpha
    )
    return {
        "activation": activation,
        "alpha": alpha,
        "curvature": curvature_text(configuration.curvature),
        "attacker_activation": attacker,
        "attacker_alpha": attacker_alpha,
    }


def curvature_metrics(configuration: SearchPoint) -> dict[str, float]:
    """Return the curvature as a metric, for figures; nothing where it is infinite or unknown."""
    bend = configuration.curvature
    return {"curvature": bend} if math.isfinite(bend) else {}


def compared_name(configuration: SearchPoint) -> str:
    """Name a configuration so that its first ten characters differ: MLflow cuts names.

    `silu`, `α=10 parametric_softplus`, and for a pair `(relu|α=10 relu_smooth_backward)`: the
    model's activation, then the attacker's.
    """
    own = _alpha_first(configuration.activation, configuration.alpha)
    if configuration.own_attacker:
        return own
    attacker = _alpha_first(configuration.attacker_activation, configuration.attacker_alpha)
    return f"({own}|{attacker})"


def _alpha_first(name: str, alpha: float | None) -> str:
    shown, alpha_shown = _shown(name, alpha)
    if alpha_shown == LEARNED:
        return f"{shown} {LEARNED}"
    hidden = alpha_shown is None or display_name(name, alpha) == name  # as in silu, torch's own
    return shown if hidden else f"α={alpha_shown} {shown}"


def _shown(name: str, alpha: float | None) -> tuple[str, str | None]:
    if activation_info(name).learned:
        return name.removesuffix(f"_{LEARNED}"), LEARNED
    module, colon, function = name.partition(":")
    shown = f"{function} ({module})" if colon else name
    return shown, None if alpha is None else alpha_text(alpha)


def group_metrics(group: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a configuration, most telling first: pages draw the first one."""
    strong = group["strong_robust_accuracy"]
    gap = group["gap"]
    quoted = {} if strong is None else {"strong_robust_accuracy": strong["mean"]}
    metrics = quoted | {
        "robust_accuracy": group["robust_accuracy"]["mean"],
        "clean_accuracy": group["clean_accuracy"]["mean"],
        "val_robust_accuracy": group["val_robust_accuracy"]["mean"],
        "robust_accuracy_sd": group["robust_accuracy"]["standard_deviation"],
        "clean_accuracy_sd": group["clean_accuracy"]["standard_deviation"],
    }
    if strong is not None and gap is not None:
        metrics |= {"strong_robust_accuracy_sd": strong["standard_deviation"], "gap": gap["mean"]}
    if group["curvature"] is not None:
        metrics["curvature"] = group["curvature"]
    if group["difference_to_relu"] is not None:
        found = group["difference_to_relu"]["over_seeds_and_images"]
        metrics |= {
            "against_relu/difference": found["mean"],
            "against_relu/low": found["low"],
            "against_relu/high": found["high"],
            "against_relu/holm_p_value": found["holm_p_value"],
            "against_relu/beyond_noise": float(group["holm_significant"]),
        }
    elif group["verdict"] == "baseline":
        # differs from itself by nothing; pages draw only what all compared runs have
        metrics |= {
            f"against_relu/{name}": 0.0 for name in ("difference", "low", "high", "beyond_noise")
        }
    metrics |= cost_metrics(group.get("cost", group)) | {
        "cost/images_per_second": group["train_images_per_second"]["mean"],
        "cost/passes_per_image": group["passes_per_image"]["mean"],
        "seeds": len(group["seeds"]),
    }
    return {name: float(value) for name, value in metrics.items() if value is not None}


def cost_metrics(cost: Mapping[str, Any], *, of: str = "cost") -> dict[str, float]:
    """Return a cost as metrics, `cost/accelerator_seconds` and, where it is known, `cost/money`.

    cost: with accelerator_seconds, perhaps money, and perhaps what of both was estimated; None
    values are left out.
    """
    names = ("accelerator_seconds", "money", "estimated_accelerator_seconds", "estimated_money")
    return {f"{of}/{name}": float(cost[name]) for name in names if cost.get(name) is not None}


def sweep_cost_metrics(cost: Mapping[str, Any]) -> dict[str, float]:
    """Return the cost of a sweep, and of each stage as `cost/<stage>/...`.

    cost: of the leaderboard.
    """
    metrics = cost_metrics(cost["total"])
    for stage in cost["stages"]:
        metrics |= cost_metrics(stage, of=f"cost/{stage['name']}")
    return metrics


def record_points(record: Record) -> list[Point]:
    """Return the history of a committed training as points."""
    rows = record.payload["history"]
    # a training that an earlier version began has no times of its first epochs
    times = record.payload.get("history_times", [])
    return history_points(rows, times if len(times) == len(rows) else [record.created] * len(rows))


def history_points(
    rows: Sequence[Mapping[str, float]], times: Sequence[float], *, first: int = 0
) -> list[Point]:
    """Return a history from a row on as points, robust accuracy first; step: epochs done.

    times: unix time at the end of each epoch. So points that were written while a training ran are
    those of its record, and MLflow keeps each once.
    """
    names = sorted(
        {name for row in rows for name in row} - {"epoch"},
        key=lambda name: (not name.startswith("val/robust"), name),
    )
    return [
        Point(name, float(row[name]), int(row["epoch"]) + 1, ended)
        for name in names
        for row, ended in list(zip(rows, times, strict=True))[first:]
        if name in row
    ]
