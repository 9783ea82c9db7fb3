"""From evaluated models to one entry per configuration: mean and spread over seeds, and its seed-paired difference to relu."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sat_ray.report.rows import EvaluatedModel
from sat_ray.report.statistics import MINIMUM_SEEDS, PairedDifference, holm, paired_difference
from sat_ray.report.summary import Summary, Survival
from sat_ray.report.text import points

SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Hold an evaluated model with its display name and what its outcomes say."""

    name: str
    model: EvaluatedModel
    images: Survival
    summary: Summary


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Hold the seeds of one configuration, ascending, and its differences to the relu baseline of the same architecture."""

    name: str
    members: tuple[Scored, ...]
    baseline: Group | None
    clean_difference: PairedDifference | None = None
    robust_difference: PairedDifference | None = None
    holm_p_value: float | None = None

    @property
    def is_baseline(self) -> bool:
        """Say whether other configurations are compared with this one."""
        return self.members[0].model.is_relu_baseline

    @property
    def common_seeds(self) -> int:
        """Return how many seeds it shares with its baseline."""
        return 0 if self.baseline is None else len({m.model.seed for m in self.members} & {m.model.seed for m in self.baseline.members})

    @property
    def beyond_noise(self) -> bool:
        """Say whether the difference to relu holds after Holm's correction over all configurations of the board."""
        return self.holm_p_value is not None and self.holm_p_value <= SIGNIFICANCE_LEVEL

    @property
    def verdict(self) -> str:
        """Say what the difference in robust accuracy to relu amounts to: its interval over seeds excludes zero, or it is noise."""
        if self.is_baseline:
            return "baseline"
        if self.baseline is None:
            return "no relu baseline"
        if self.robust_difference is None:
            return f"not enough seeds ({self.common_seeds})"
        if not self.robust_difference.has_spread:
            return "no spread over seeds"
        if self.robust_difference.low <= 0.0 <= self.robust_difference.high:
            return "within noise"
        return f"{points(self.robust_difference.mean, signed=True)} ± {points(self.robust_difference.half_width)} points"

    def values(self, measure: Callable[[Scored], float]) -> dict[int, float]:
        """Return seed → measure."""
        return {scored.model.seed: measure(scored) for scored in self.members}


def group_by_configuration(scored: Sequence[Scored]) -> list[Group]:
    """Group models into configurations, each compared with the relu baseline of its architecture; raise ValueError for a repeated seed."""
    members: dict[Any, list[Scored]] = {}
    for one in scored:
        members.setdefault(one.model.key, []).append(one)
    for same in members.values():
        seeds = [one.model.seed for one in same]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seed of {same[0].name} holds {sorted(seeds)}; allowed: each seed once per configuration")
    plain = [
        Group(name=same[0].name, members=tuple(sorted(same, key=lambda one: one.model.seed)), baseline=None) for same in members.values()
    ]
    baselines: dict[str, Group] = {}
    for group in plain:
        if group.is_baseline:
            if group.members[0].model.model in baselines:
                raise ValueError(f"alpha of the relu baseline {group.name} has several values; allowed: one baseline per architecture")
            baselines[group.members[0].model.model] = group
    return _with_holm([_compared(group, baselines.get(group.members[0].model.model)) for group in plain])


def _compared(group: Group, baseline: Group | None) -> Group:
    """Return the group with its seed-paired differences to the baseline, where three seeds or more are shared."""
    related = replace(group, baseline=baseline)
    if baseline is None or group.is_baseline or related.common_seeds < MINIMUM_SEEDS:
        return related
    return replace(
        related,
        clean_difference=paired_difference(group.values(_clean), baseline.values(_clean)),
        robust_difference=paired_difference(group.values(_robust), baseline.values(_robust)),
    )


def _with_holm(groups: list[Group]) -> list[Group]:
    """Return the groups with p-values of the robust difference corrected over all of them: the family is the whole board."""
    p_values = {group.name: group.robust_difference.p_value for group in groups if group.robust_difference is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return [replace(group, holm_p_value=adjusted.get(group.name)) for group in groups]


def describe_group(group: Group) -> dict[str, Any]:
    """Return the group as a JSON-ready dict: fractions in [0, 1], standard deviations over seeds (None with one seed)."""
    first = group.members[0]
    return {
        "configuration": group.name,
        "model": first.model.model,
        "activation": first.model.activation,
        "alpha": first.model.alpha,
        "attacker_activation": first.model.attacker_activation,
        "attacker_alpha": first.model.attacker_alpha,
        "seeds": [one.model.seed for one in group.members],
        "n": first.summary.n,
        "val_robust_accuracy": _spread(group, lambda one: one.model.val_robust_accuracy),
        "clean_accuracy": _spread(group, _clean),
        "robust_accuracy": _spread(group, _robust),
        "accelerator_seconds": math.fsum(one.model.accelerator_seconds for one in group.members),
        "train_images_per_second": _spread(group, lambda one: one.model.train_images_per_second),
        "passes_per_image": _spread(group, lambda one: one.summary.passes_per_image),
        "difference_to_relu": _describe_difference(group),
        "verdict": group.verdict,
        "holm_significant": group.beyond_noise,
    }


def _describe_difference(group: Group) -> dict[str, Any] | None:
    if group.clean_difference is None or group.robust_difference is None:
        return None
    return {
        "seeds": list(group.robust_difference.seeds),
        "clean_accuracy": _describe_paired(group.clean_difference),
        "robust_accuracy": _describe_paired(group.robust_difference) | {"holm_p_value": group.holm_p_value},
    }


def _describe_paired(difference: PairedDifference) -> dict[str, float]:
    return {
        "mean": difference.mean,
        "standard_deviation": difference.standard_deviation,
        "low": difference.low,
        "high": difference.high,
        "p_value": difference.p_value,
    }


def _spread(group: Group, measure: Callable[[Scored], float]) -> dict[str, float | None]:
    values = list(group.values(measure).values())
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": math.fsum(values) / len(values), "standard_deviation": deviation}


def _clean(scored: Scored) -> float:
    return scored.summary.clean_accuracy


def _robust(scored: Scored) -> float:
    return scored.summary.robust_accuracy
