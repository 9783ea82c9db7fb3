"""From evaluated models to one entry per configuration: mean and spread over seeds, and its paired difference to relu."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sat_ray.report.rows import EvaluatedModel
from sat_ray.report.statistics import MINIMUM_SEEDS, PairedDifference, holm, paired_difference
from sat_ray.report.summary import Summary, Survival
from sat_ray.report.text import points
from sat_ray.report.variation import MixedDifference, mixed_difference

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
    mixed_difference: MixedDifference | None = None
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
        """Say whether the difference to relu holds over seeds and images, after Holm's correction over all configurations of the board."""
        mixed, p_value = self.mixed_difference, self.holm_p_value
        return mixed is not None and p_value is not None and p_value <= SIGNIFICANCE_LEVEL and mixed.excludes_zero

    @property
    def verdict(self) -> str:
        """Say what the difference in robust accuracy to relu amounts to: noise, unless its interval over seeds and images excludes zero."""
        if self.is_baseline:
            return "baseline"
        if self.baseline is None:
            return "no relu baseline"
        if self.robust_difference is None or self.mixed_difference is None:
            return f"not enough seeds ({self.common_seeds})"
        if not self.robust_difference.has_spread:
            return "no spread over seeds"
        if not self.mixed_difference.excludes_zero:
            return "within noise"
        return f"{points(self.mixed_difference.mean, signed=True)} ± {points(self.mixed_difference.half_width)} points"

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
        mixed_difference=_over_seeds_and_images(group, baseline),
    )


def _over_seeds_and_images(group: Group, baseline: Group) -> MixedDifference:
    """Compare the verdicts on every image with those of the baseline trained with the same seed; the images are the same for all."""
    ours, theirs = ({one.model.seed: one.images.robust for one in side.members} for side in (group, baseline))
    seeds = sorted(set(ours) & set(theirs))
    return mixed_difference(np.stack([ours[seed] for seed in seeds]), np.stack([theirs[seed] for seed in seeds]))


def _with_holm(groups: list[Group]) -> list[Group]:
    """Return the groups with p-values of the robust difference corrected over all of them: the family is the whole board."""
    p_values = {group.name: group.mixed_difference.p_value for group in groups if group.mixed_difference is not None}
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
    if group.clean_difference is None or group.robust_difference is None or group.mixed_difference is None:
        return None
    return {
        "seeds": list(group.robust_difference.seeds),
        "clean_accuracy": _describe_paired(group.clean_difference),
        "robust_accuracy": _describe_paired(group.robust_difference),
        "over_seeds_and_images": asdict(group.mixed_difference)
        | {"bootstrap": list(group.mixed_difference.bootstrap), "holm_p_value": group.holm_p_value},
    }


def _describe_paired(difference: PairedDifference) -> dict[str, float | None]:
    return {
        "mean": difference.mean,
        "effect_size": difference.effect_size,
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
