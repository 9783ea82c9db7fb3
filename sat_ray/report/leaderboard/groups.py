"""From evaluated models to one entry per configuration: mean and spread over seeds, and its paired difference to relu.

Every difference exists for two numbers, the strong one and PGD's. The board has one of them as its `measure`, on which its order, its
claims and its champion rest: the strong number as soon as one model has it, PGD's otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sat_ray.report.formatting import points, signed_points
from sat_ray.report.leaderboard.curvature import curvature_json, curvature_of
from sat_ray.report.leaderboard.holm import holm
from sat_ray.report.leaderboard.rows import EvaluatedModel
from sat_ray.report.leaderboard.strong import StrongVerdict
from sat_ray.report.leaderboard.summary import BoolArray, Summary, Survival
from sat_ray.report.leaderboard.variation import MixedDifference, mixed_difference

MINIMUM_SEEDS = 3
SIGNIFICANCE_LEVEL = 0.05
PGD, STRONG = "robust_accuracy", "strong_robust_accuracy"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Hold an evaluated model with its display name and what its outcomes say; strong: None where no strong attack was run."""

    name: str
    model: EvaluatedModel
    images: Survival
    summary: Summary
    strong: StrongVerdict | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """Hold the difference of one number to relu over the seeds that both have, and over images.

    holm_p_value: corrected over the whole leaderboard.
    """

    seeds: tuple[int, ...]
    mixed: MixedDifference
    holm_p_value: float = 1.0

    @property
    def beyond_noise(self) -> bool:
        """Say whether the difference holds over seeds and images, after Holm's correction over all configurations of the board."""
        return self.holm_p_value <= SIGNIFICANCE_LEVEL and self.mixed.excludes_zero

    @property
    def verdict(self) -> str:
        """Say what it amounts to: noise, unless its interval over seeds and images excludes zero."""
        if not self.mixed.seeds_differ:
            return "no spread over seeds"
        if not self.mixed.excludes_zero:
            return "within noise"
        return f"{signed_points(self.mixed.mean)} ± {points(self.mixed.half_width)} points"


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Hold the seeds of one configuration, ascending, and its differences to the relu baseline of the same architecture.

    measure: STRONG or PGD, the number that decides on the board; differences: by number; gap_difference: how much more PGD favours this
    configuration than it favours relu.
    """

    name: str
    members: tuple[Scored, ...]
    measure: str
    baseline: Group | None = None
    differences: dict[str, Compared]
    gap_difference: MixedDifference | None = None

    @property
    def is_baseline(self) -> bool:
        """Say whether other configurations are compared with this one."""
        return self.members[0].model.is_relu_baseline

    @property
    def seeds(self) -> list[int]:
        """Return the seeds, ascending."""
        return [one.model.seed for one in self.members]

    @property
    def common_seeds(self) -> int:
        """Return how many seeds it shares with its baseline."""
        return 0 if self.baseline is None else len(_common_seeds(self, self.baseline))

    @property
    def has_strong(self) -> bool:
        """Say whether every seed has a strong number: a mean over some of them would be no mean over seeds."""
        return all(one.strong is not None for one in self.members)

    @property
    def difference(self) -> Compared | None:
        """Return the difference of the number that decides."""
        return self.differences.get(self.measure)

    @property
    def beyond_noise(self) -> bool:
        """Say whether the number that decides differs from relu's beyond noise."""
        return self.difference is not None and self.difference.beyond_noise

    @property
    def verdict(self) -> str:
        """Say what the difference of the number that decides amounts to."""
        return self.verdict_on(self.measure)

    def verdict_on(self, measure: str) -> str:
        """Say what the difference of a number to relu amounts to."""
        if self.is_baseline:
            return "baseline"
        if self.baseline is None:
            return "no relu baseline"
        if measure == STRONG and not self.has_strong:
            return "no strong number"
        if measure == STRONG and not self.baseline.has_strong:
            return "relu has no strong number"
        if measure not in self.differences:
            return f"not enough seeds ({self.common_seeds})"
        return self.differences[measure].verdict

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
            raise ValueError(
                f"seed of {same[0].name} holds {sorted(seeds)}; allowed: each seed once per configuration"
            )
    measure = STRONG if any(one.strong is not None for one in scored) else PGD
    plain = [
        Group(
            name=same[0].name,
            members=tuple(sorted(same, key=lambda one: one.model.seed)),
            measure=measure,
            differences={},
        )
        for same in members.values()
    ]
    baselines: dict[str, Group] = {}
    for group in plain:
        if group.is_baseline:
            if group.members[0].model.model in baselines:
                raise ValueError(
                    f"alpha of the relu baseline {group.name} has several values; allowed: one baseline per architecture"
                )
            baselines[group.members[0].model.model] = group
    compared = [_compared(group, baselines.get(group.members[0].model.model)) for group in plain]
    return _with_holm(_with_holm(compared, PGD), STRONG)


def _compared(group: Group, baseline: Group | None) -> Group:
    """Return the group with its seed-paired differences to the baseline, where three seeds or more are shared."""
    related = replace(group, baseline=baseline)
    if baseline is None or group.is_baseline or related.common_seeds < MINIMUM_SEEDS:
        return related
    differences = {PGD: _difference(group, baseline, _pgd_verdicts)}
    gap = None
    if group.has_strong and baseline.has_strong:
        differences[STRONG] = _difference(group, baseline, _strong_verdicts)
        gap = mixed_difference(*_paired_verdicts(group, baseline, _fallen))
    return replace(
        related,
        differences=differences,
        gap_difference=gap,
    )


def _difference(group: Group, baseline: Group, verdicts: Callable[[Scored], BoolArray]) -> Compared:
    """Compare the verdicts on every image with those of the baseline trained with the same seed; the images are the same for all."""
    return Compared(
        seeds=_common_seeds(group, baseline),
        mixed=mixed_difference(*_paired_verdicts(group, baseline, verdicts)),
    )


def _common_seeds(group: Group, baseline: Group) -> tuple[int, ...]:
    return tuple(sorted(set(group.seeds) & set(baseline.seeds)))


def _paired_verdicts(
    group: Group, baseline: Group, verdicts: Callable[[Scored], BoolArray]
) -> tuple[BoolArray, BoolArray]:
    """Return the verdicts of both, (common seeds, images) bool each."""
    ours, theirs = (
        {one.model.seed: verdicts(one) for one in side.members} for side in (group, baseline)
    )
    seeds = _common_seeds(group, baseline)
    return np.stack([ours[seed] for seed in seeds]), np.stack([theirs[seed] for seed in seeds])


def _pgd_verdicts(scored: Scored) -> BoolArray:
    return scored.images.robust


def _strong_verdicts(scored: Scored) -> BoolArray:
    assert scored.strong is not None
    return scored.strong.robust


def _fallen(scored: Scored) -> BoolArray:
    """Return which images survive PGD and fall to the strong attacks."""
    return scored.images.robust & ~_strong_verdicts(scored)


def _with_holm(groups: list[Group], measure: str) -> list[Group]:
    """Return the groups with p-values of one number's difference corrected over all of them: the family is the whole board."""
    compared = [group for group in groups if measure in group.differences]
    adjusted = holm([group.differences[measure].mixed.p_value for group in compared])
    corrected = dict(zip([group.name for group in compared], adjusted, strict=True))

    def with_p_value(group: Group) -> Group:
        if group.name not in corrected:
            return group
        found = replace(group.differences[measure], holm_p_value=corrected[group.name])
        return replace(group, differences=group.differences | {measure: found})

    return [with_p_value(group) for group in groups]


def describe_group(group: Group) -> dict[str, Any]:
    """Return the group as a JSON-ready dict: fractions in [0, 1], standard deviations over seeds (None with one seed)."""
    first = group.members[0]
    curvature = curvature_of(first.model.activation, first.model.alpha)
    return {
        "configuration": group.name,
        "model": first.model.model,
        "activation": first.model.activation,
        "alpha": first.model.alpha,
        **curvature_json(curvature),
        "attacker_activation": first.model.attacker_activation,
        "attacker_alpha": first.model.attacker_alpha,
        "seeds": group.seeds,
        "n": first.summary.n,
        "val_robust_accuracy": _spread(group, lambda one: one.model.val_robust_accuracy),
        "val_strong_robust_accuracy": _spread_if_known(
            group, lambda one: one.model.val_strong_robust_accuracy
        ),
        "clean_accuracy": _spread(group, clean_of),
        "robust_accuracy": _spread(group, lambda one: one.summary.robust_accuracy),
        "strong_robust_accuracy": _spread_if_known(
            group, lambda one: None if one.strong is None else one.strong.accuracy
        ),
        **_describe_gap(group),
        "accelerator_seconds": math.fsum(one.model.accelerator_seconds for one in group.members),
        "train_images_per_second": _spread(group, lambda one: one.model.train_images_per_second),
        "passes_per_image": _spread(group, lambda one: one.summary.passes_per_image),
        "difference_to_relu": _describe_difference(group, group.measure),
        "verdict": group.verdict,
        "holm_significant": group.beyond_noise,
        "pgd": _describe_pgd(group),
    }


def _describe_gap(group: Group) -> dict[str, Any]:
    """Return the gap between both numbers: over seeds, as a share of PGD's survivors, and where the row is marked."""
    mixed = group.gap_difference
    return {
        "gap": _spread_if_known(
            group, lambda one: None if one.strong is None else one.strong.gap.of_all
        ),
        "gap_share": _spread_if_known(
            group, lambda one: None if one.strong is None else one.strong.gap.share
        ),
        "flattered_seeds": [
            one.model.seed
            for one in group.members
            if one.strong is not None and one.strong.gap.flattered
        ],
        "gap_difference_to_relu": None
        if mixed is None
        else {"mean": mixed.mean, "low": mixed.low, "high": mixed.high},
    }


def _describe_pgd(group: Group) -> dict[str, Any]:
    """Return what PGD alone, the paper's measure, says of the difference to relu."""
    return {
        "difference_to_relu": _describe_difference(group, PGD),
        "verdict": group.verdict_on(PGD),
        "holm_significant": PGD in group.differences and group.differences[PGD].beyond_noise,
    }


def _describe_difference(group: Group, measure: str) -> dict[str, Any] | None:
    found = group.differences.get(measure)
    if found is None:
        return None
    return {
        "measure": measure,
        "seeds": list(found.seeds),
        "over_seeds_and_images": asdict(found.mixed)
        | {"bootstrap": list(found.mixed.bootstrap), "holm_p_value": found.holm_p_value},
    }


def _spread(group: Group, measure: Callable[[Scored], float]) -> dict[str, float | None]:
    values = list(group.values(measure).values())
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": math.fsum(values) / len(values), "standard_deviation": deviation}


def _spread_if_known(
    group: Group, measure: Callable[[Scored], float | None]
) -> dict[str, float | None] | None:
    """Return mean and standard deviation over seeds; None unless every seed has the figure."""
    values = [measure(one) for one in group.members]
    if any(value is None for value in values):
        return None
    return _spread(group, lambda one: float(measure(one) or 0.0))


def clean_of(scored: Scored) -> float:
    """Return the clean accuracy."""
    return scored.summary.clean_accuracy
