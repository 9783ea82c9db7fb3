"""The leaderboard: rows per seed, groups per configuration, champion and headline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sat_ray.report.formatting import pgd_name
from sat_ray.report.leaderboard.curvature import curvature_json, curvature_of
from sat_ray.report.leaderboard.groups import (
    PGD,
    STRONG,
    Group,
    Scored,
    describe_group,
    group_by_configuration,
)
from sat_ray.report.leaderboard.headline import write_headline
from sat_ray.report.leaderboard.power import LEVEL, POWER, detectable_in
from sat_ray.report.leaderboard.rows import EvaluatedModel, display_names
from sat_ray.report.leaderboard.strong import strong_verdict
from sat_ray.report.leaderboard.summary import summarise, survival
from sat_ray.sweep.search.model_selection import Validated, ranked


def leaderboard(
    models: Sequence[EvaluatedModel],
    *,
    sweep: str,
    dataset: str,
    threat_model: Mapping[str, Any],
    attack: Mapping[str, Any],
    strong_attack: Mapping[str, Any] | None = None,
    verdicts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the leaderboard as a JSON-ready dict.

    Rows and groups are sorted by their accuracy on the test split, best first, for display: by the
    strong number where any model has one, those without it last. `measure` says which number
    decides.
    threat_model: {"norm", "epsilon"}; attack: {"name", "steps", "step_size", "restarts"}; epsilon
    and step_size in [0, 1] pixels; strong_attack: {"name", ...}, named after its attacks where it
    is not given; verdicts: PASS or FLAG of the robustness cards that were made, by checkpoint.
    Raises ValueError without models, with a repeated seed, or if two models were evaluated on
    different images.
    """
    if not models:
        raise ValueError("models must hold at least 1 evaluated model, got none")
    scored = [
        _score(model, name=name) for model, name in zip(models, display_names(models), strict=True)
    ]
    _check_same_images(scored)
    groups = group_by_configuration(scored)
    rows = sorted(
        (_row(one, verdict=(verdicts or {}).get(one.model.checkpoint)) for one in scored),
        key=_best_first,
    )
    champion = choose_champion(rows)
    by_name = {group.name: group for group in groups}
    best = by_name[champion["configuration"]]
    return {
        "sweep": sweep,
        "dataset": dataset,
        "threat_model": dict(threat_model),
        "attack": dict(attack),
        "strong_attack": _strong_attack(scored, strong_attack),
        "measure": groups[0].measure,
        "headline": write_headline(
            best, groups, attack=pgd_name({"attack": attack}), chosen_by=champion["selected_by"]
        ),
        "power": _power(groups),
        "champion": champion | {"per_class": _per_class(best, seed=champion["row"]["seed"])},
        "groups": sorted((describe_group(group) for group in groups), key=_best_group_first),
        "rows": rows,
    }


def choose_champion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose the best configuration by validation whose robustness card says PASS.

    rows: leaderboard rows; the champion's row is its best seed. Ranking as in
    `sat_ray.sweep.search.model_selection`. No figure of the test split takes part. The strong
    number on validation decides where any row has it, and then among the configurations that have
    it for every seed. Where no card says PASS, the best by
    validation is chosen, with its verdict.
    """
    measure, candidates = _candidates(rows)
    scored = [Validated(row["configuration"], row["seed"], row[measure]) for row in candidates]
    order = ranked(scored)
    passed = [one for one in order if candidates[one[1]].get("robustness_card") == "PASS"]
    mean, best = (passed or order)[0]
    chosen = candidates[best]
    same = [row for row in candidates if row["configuration"] == chosen["configuration"]]
    return {
        "configuration": chosen["configuration"],
        "selected_by": measure,
        "val_robust_accuracy": math.fsum(row["val_robust_accuracy"] for row in same) / len(same),
        "val_strong_robust_accuracy": mean if measure == "val_strong_robust_accuracy" else None,
        "robustness_card": chosen.get("robustness_card"),
        "row": dict(chosen),
    }


def _candidates(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the validation figure that chooses the champion, and the rows that have it.

    They are the rows of all configurations that have it for every seed.
    """
    strong = "val_strong_robust_accuracy"
    without = {row["configuration"] for row in rows if row.get(strong) is None}
    complete = [row for row in rows if row["configuration"] not in without]
    return (strong, complete) if complete else ("val_robust_accuracy", list(rows))


def _strong_attack(
    scored: Sequence[Scored], given: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Describe the strong attacks; None where no model met any."""
    found = [one.strong for one in scored if one.strong is not None]
    if not found:
        return None
    names = sorted({name for one in found for name in one.attacks})
    return {"name": " + ".join(names) or "strong attacks"} | dict(given or {})


def _power(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Return which difference to relu the sweep can detect; None where nothing was compared."""
    compared = [group for group in groups if group.difference is not None]
    seeds = min((group.common_seeds for group in compared), default=0)
    found = [group.difference.mixed for group in compared if group.difference is not None]
    smallest = detectable_in(found, seeds=seeds)
    if smallest is None:
        return None
    more = detectable_in(found, seeds=seeds, planned_seeds=10) if seeds < 10 else None
    return {
        "smallest_difference": smallest,
        "smallest_difference_with_10_seeds": more,
        "power": POWER,
        "level": LEVEL,
        "comparisons": len(compared),
        "seeds": seeds,
        "n": compared[0].members[0].summary.n,
    }


def _score(model: EvaluatedModel, *, name: str) -> Scored:
    """Return the model with its verdicts per image; a bad table's error names the model."""
    try:
        images = survival(model.table)
        strong = None if model.strong_table is None else strong_verdict(images, model.strong_table)
        return Scored(
            name=name, model=model, images=images, summary=summarise(model.table), strong=strong
        )
    except ValueError as error:
        raise ValueError(f"{name}, seed {model.seed}: {error}") from error


def _check_same_images(scored: Sequence[Scored]) -> None:
    """Raise ValueError unless every model has the same images and labels."""
    first = scored[0]
    for other in scored[1:]:
        if not np.array_equal(first.images.image_ids, other.images.image_ids):
            raise ValueError(
                "all models must have the same images, got "
                f"{first.summary.n} of {first.name}, seed {first.model.seed}, and others "
                f"({other.summary.n}) of {other.name}, seed {other.model.seed}"
            )
        if not np.array_equal(first.images.labels, other.images.labels):
            raise ValueError(
                f"all models must have the same labels, got others for {first.name} and "
                f"{other.name}"
            )


def _row(scored: Scored, *, verdict: str | None) -> dict[str, Any]:
    model = scored.model
    summary = scored.summary
    return {
        "configuration": scored.name,
        "model": model.model,
        "activation": model.activation,
        "alpha": model.alpha,
        **curvature_json(curvature_of(model.activation, model.alpha)),
        "attacker_activation": model.attacker_activation,
        "attacker_alpha": model.attacker_alpha,
        "seed": model.seed,
        "val_robust_accuracy": model.val_robust_accuracy,
        "val_strong_robust_accuracy": model.val_strong_robust_accuracy,
        "clean_accuracy": summary.clean_accuracy,
        "robust_accuracy": summary.robust_accuracy,
        "robust_accuracy_interval": list(summary.robust_accuracy_interval),
        **_strong_row(scored),
        **_corruption_row(model),
        "n": summary.n,
        "clean_errors": summary.clean_errors,
        "attacks": summary.attacks,
        "final_iterate_attacks": summary.final_iterate_attacks,
        "passes_per_image": summary.passes_per_image,
        "robustness_card": verdict,
        "checkpoint": model.checkpoint,
        "outcomes": model.outcomes,
        "strong_outcomes": model.strong_outcomes,
        "mlflow_run_id": model.mlflow_run_id,
        "accelerator_seconds": model.accelerator_seconds,
        "train_images_per_second": model.train_images_per_second,
    }


def _corruption_row(model: EvaluatedModel) -> dict[str, Any]:
    """Return the accuracy under common corruptions, {} where it was not measured."""
    if model.corruptions is None:
        return {}
    return {
        "corruption_accuracy": model.corruption_accuracy,
        "corruptions": {kind: list(found) for kind, found in model.corruptions.items()},
    }


def _strong_row(scored: Scored) -> dict[str, Any]:
    """Return the strong number of a row and the gap between it and PGD's, None if unknown."""
    strong = scored.strong
    if strong is None:
        names = ("strong_robust_accuracy", "strong_robust_accuracy_interval", "gap", "gap_share")
        unknown = dict.fromkeys((*names, "gap_share_interval", "pgd_flatters"))
        return {**unknown, "strong_attacks": {}}
    return {
        "strong_robust_accuracy": strong.accuracy,
        "strong_robust_accuracy_interval": list(strong.interval),
        "strong_attacks": strong.attacks,
        "gap": strong.gap.of_all,
        "gap_share": strong.gap.share,
        "gap_share_interval": list(strong.gap.interval),
        "pgd_flatters": strong.gap.overestimated,
    }


def _best_first(row: Mapping[str, Any]) -> tuple[bool, float, float, str, int]:
    strong = row[STRONG]
    deciding = row[PGD] if strong is None else strong
    return strong is None, -deciding, -row["clean_accuracy"], row["configuration"], row["seed"]


def _best_group_first(group: Mapping[str, Any]) -> tuple[bool, float, float, str]:
    strong = group[STRONG]
    deciding = (group[PGD] if strong is None else strong)["mean"]
    return strong is None, -deciding, -group["clean_accuracy"]["mean"], group["configuration"]


def _per_class(group: Group, *, seed: int) -> list[dict[str, Any]]:
    """Return the accuracies per label of the group's model with that seed.

    The strong one is None where the model has no strong number.
    """
    chosen = next(one for one in group.members if one.model.seed == seed)
    images = chosen.images

    def accuracies(label: int) -> dict[str, Any]:
        own = images.labels == label
        strong = None if chosen.strong is None else float(chosen.strong.robust[own].mean())
        return {
            "label": label,
            "n": int(own.sum()),
            "clean_accuracy": float(images.clean[own].mean()),
            "robust_accuracy": float(images.robust[own].mean()),
            "strong_robust_accuracy": strong,
        }

    return [accuracies(label) for label in np.unique(images.labels).tolist()]
