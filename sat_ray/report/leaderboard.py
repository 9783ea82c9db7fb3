"""The leaderboard: rows per seed, groups per configuration, the champion by validation, and the headline. A pure function of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sat_ray.report.groups import Group, Scored, describe_group, group_by_configuration
from sat_ray.report.headline import write_headline
from sat_ray.report.rows import EvaluatedModel, display_names
from sat_ray.report.summary import Summary, summarise, survival
from sat_ray.report.tables import to_markdown, to_terminal
from sat_ray.selection import Validated, ranked

__all__ = ["Summary", "choose_champion", "leaderboard", "summarise", "to_markdown", "to_terminal"]


def leaderboard(
    models: Sequence[EvaluatedModel],
    *,
    sweep: str,
    dataset: str,
    threat_model: Mapping[str, Any],
    attack: Mapping[str, Any],
    verdicts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the board as a JSON-ready dict; rows and groups are sorted by robust accuracy on the test split, best first, for display.

    threat_model: {"norm", "epsilon"}; attack: {"name", "steps", "step_size", "restarts"}; epsilon and step_size in [0, 1] pixels;
    verdicts: PASS or FLAG of the robustness cards that were made, by checkpoint.
    Raises ValueError without models, with a repeated seed, or if two models were evaluated on different images.
    """
    if not models:
        raise ValueError("models holds 0 entries; allowed: at least one evaluated model")
    scored = [_score(model, name=name) for model, name in zip(models, display_names(models), strict=True)]
    _check_same_images(scored)
    groups = group_by_configuration(scored)
    rows = sorted((_row(one, verdict=(verdicts or {}).get(one.model.checkpoint)) for one in scored), key=_best_first)
    champion = choose_champion(rows)
    by_name = {group.name: group for group in groups}
    return {
        "sweep": sweep,
        "dataset": dataset,
        "threat_model": dict(threat_model),
        "attack": dict(attack),
        "headline": write_headline(by_name[champion["configuration"]], groups),
        "champion": champion | {"per_class": _per_class(by_name[champion["configuration"]], seed=champion["row"]["seed"])},
        "groups": sorted((describe_group(group) for group in groups), key=_best_group_first),
        "rows": rows,
    }


def choose_champion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose the best configuration by validation (`sat_ray.selection`) whose robustness card says PASS, and its best seed.

    rows: leaderboard rows. No figure of the test split takes part. Where no card says PASS, the best by validation, with its verdict.
    """
    scored = [Validated(row["configuration"], row["seed"], row["val_robust_accuracy"]) for row in rows]
    order = ranked(scored)
    mean, best = next(((mean, index) for mean, index in order if rows[index].get("robustness_card") == "PASS"), order[0])
    return {
        "configuration": rows[best]["configuration"],
        "selected_by": "val_robust_accuracy",
        "val_robust_accuracy": mean,
        "robustness_card": rows[best].get("robustness_card"),
        "row": dict(rows[best]),
    }


def _score(model: EvaluatedModel, *, name: str) -> Scored:
    """Return the model with its verdicts per image; a bad table's error names the model."""
    try:
        return Scored(name=name, model=model, images=survival(model.table), summary=summarise(model.table))
    except ValueError as error:
        raise ValueError(f"{name}, seed {model.seed}: {error}") from error


def _check_same_images(scored: Sequence[Scored]) -> None:
    """Raise ValueError unless every model met the same images: accuracies of different subsets cannot be ranked or paired."""
    first = scored[0]
    for other in scored[1:]:
        if not np.array_equal(first.images.image_ids, other.images.image_ids):
            raise ValueError(
                f"image_id of {other.name}, seed {other.model.seed} ({other.summary.n} images) is another set than that of "
                f"{first.name}, seed {first.model.seed} ({first.summary.n} images); allowed: the same images for every model"
            )
        if not np.array_equal(first.images.labels, other.images.labels):
            raise ValueError(f"label differs between {first.name} and {other.name}; allowed: the same labels for every model")


def _row(scored: Scored, *, verdict: str | None) -> dict[str, Any]:
    model, summary = scored.model, scored.summary
    return {
        "configuration": scored.name,
        "model": model.model,
        "activation": model.activation,
        "alpha": model.alpha,
        "attacker_activation": model.attacker_activation,
        "attacker_alpha": model.attacker_alpha,
        "seed": model.seed,
        "val_robust_accuracy": model.val_robust_accuracy,
        "clean_accuracy": summary.clean_accuracy,
        "robust_accuracy": summary.robust_accuracy,
        "robust_accuracy_interval": list(summary.robust_accuracy_interval),
        "n": summary.n,
        "clean_errors": summary.clean_errors,
        "attacks": summary.attacks,
        "final_iterate_attacks": summary.final_iterate_attacks,
        "passes_per_image": summary.passes_per_image,
        "robustness_card": verdict,
        "checkpoint": model.checkpoint,
        "outcomes": model.outcomes,
        "mlflow_run_id": model.mlflow_run_id,
        "accelerator_seconds": model.accelerator_seconds,
        "train_images_per_second": model.train_images_per_second,
    }


def _best_first(row: Mapping[str, Any]) -> tuple[float, float, str, int]:
    return -row["robust_accuracy"], -row["clean_accuracy"], row["configuration"], row["seed"]


def _best_group_first(group: Mapping[str, Any]) -> tuple[float, float, str]:
    return -group["robust_accuracy"]["mean"], -group["clean_accuracy"]["mean"], group["configuration"]


def _per_class(group: Group, *, seed: int) -> list[dict[str, float | int]]:
    """Return clean and robust accuracy per label of the group's model with that seed."""
    images = next(one.images for one in group.members if one.model.seed == seed)
    return [
        {
            "label": int(label),
            "n": int((images.labels == label).sum()),
            "clean_accuracy": float(images.clean[images.labels == label].mean()),
            "robust_accuracy": float(images.robust[images.labels == label].mean()),
        }
        for label in np.unique(images.labels)
    ]
