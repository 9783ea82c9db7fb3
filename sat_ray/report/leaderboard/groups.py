"""Configurations: mean and spread over seeds, and the paired difference to relu.

Every difference exists for two numbers, the strong one and PGD's. The leaderboard has one of them
as its `measure`, which decides its order, its claims and its champion: the strong number as soon
as one model has it, PGD's otherwise.
"""

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
    """Hold an evaluated model with its display name and its verdicts.

    strong: None where no strong attack was run.
    """

    name: str
    model: EvaluatedModel
    images: Survival
    summary: Summary
    strong: StrongVerdict | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """Hold the difference of one number to relu over common seeds and images.

    holm_p_value: corrected over the whole leaderboard.
    """

    seeds: list[int]
    mixed: MixedDifference
    holm_p_value: float = 1.0

    @property
    def beyond_noise(self) -> bool:
        """Say whether the difference holds after Holm's correction over the leaderboard."""
        return self.holm_p_value <= SIGNIFICANCE_LEVEL and self.mixed.excludes_zero

    @property
    def verdict(self) -> str:
        """Return the size of the difference; noise, unless its interval excludes zero."""
        if not self.mixed.seeds_differ:
            return "no spread over seeds"
        if not self.mixed.excludes_zero:
            return "within noise"
        return f"{signed_points(self.mixed.mean)} ± {points(self.mixed.half_width)} points"


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Hold the seeds of one configuration, ascending, and its differences to relu.

    baseline: relu of the same architecture; measure: STRONG or PGD, the number that decides;
    differences: by number; gap_difference: how much more PGD favours this configuration than it
    favours relu.
    """

    name: str
    members: tuple[Scored, ...]
    measure: str
    baseline: "Group | None"
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
        """Return the number of seeds that it shares with its baseline."""
        return 0 if self.baseline is None else len(_common_seeds(self, self.baseline))

    @property
    def has_strong(self) -> bool:
        """Say whether every seed has a strong number; a mean needs all of them."""
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
        """Return the verdict on the number that decides."""
        return self.verdict_on(self.measure)

    def verdict_on(self, measure: str) -> str:
        """Return the size of the difference of a number to relu, or why there is none."""
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


def group_by_configuration(scored: Sequence[Scored]) -> list[Group]:
    """Group models into configurations, each compared with relu of its architecture.

    Raises ValueError for a repeated seed and for several relu baselines of one architecture.
    """
    members: dict[Any, list[Scored]] = {}
    for one in scored:
        members.setdefault(one.model.key, []).append(one)
    measure = STRONG if any(one.strong is not None for one in scored) else PGD
    plain = [_group(same, measure) for same in members.values()]
    baselines: dict[str, Group] = {}
    for group in plain:
        architecture = group.members[0].model.model
        if group.is_baseline and architecture in baselines:
            raise ValueError(
                f"{architecture} must have one relu baseline, got {baselines[architecture].name} "
                f"and {group.name}"
            )
        if group.is_baseline:
            baselines[architecture] = group
    compared = [_compared(group, baselines.get(group.members[0].model.model)) for group in plain]
    _correct(compared, PGD)
    _correct(compared, STRONG)
    return compared


def _group(same: Sequence[Scored], measure: str) -> Group:
    name = same[0].name
    members = tuple(sorted(same, key=lambda one: one.model.seed))
    group = Group(name=name, members=members, measure=measure, baseline=None, differences={})
    if len(set(group.seeds)) < len(group.seeds):
        raise ValueError(f"seeds of {name} must differ, got {group.seeds}")
    return group


def _compared(group: Group, baseline: Group | None) -> Group:
    """Return the group with its differences to the baseline, if they share enough seeds."""
    related = replace(group, baseline=baseline)
    if baseline is None or group.is_baseline or related.common_seeds < MINIMUM_SEEDS:
        return related
    seeds = _common_seeds(group, baseline)

    def difference(verdicts: Callable[[Scored], BoolArray]) -> MixedDifference:
        ours, theirs = (
            np.stack([verdicts(one) for one in side.members if one.model.seed in seeds])
            for side in (group, baseline)
        )
        return mixed_difference(ours, theirs)

    differences = {PGD: Compared(seeds=seeds, mixed=difference(lambda one: one.images.robust))}
    if not (group.has_strong and baseline.has_strong):
        return replace(related, differences=differences)
    differences[STRONG] = Compared(seeds=seeds, mixed=difference(_strong_verdicts))
    return replace(related, differences=differences, gap_difference=difference(_broken_survivors))


def _common_seeds(group: Group, baseline: Group) -> list[int]:
    return [seed for seed in group.seeds if seed in baseline.seeds]


def _strong_verdicts(scored: Scored) -> BoolArray:
    assert scored.strong is not None
    return scored.strong.robust


def _broken_survivors(scored: Scored) -> BoolArray:
    """Return which images survive PGD and are broken by the strong attacks."""
    return scored.images.robust & ~_strong_verdicts(scored)


def _correct(groups: Sequence[Group], measure: str) -> None:
    """Correct the p-values of one number's differences over the whole leaderboard."""
    compared = [group.differences for group in groups if measure in group.differences]
    adjusted = holm([differences[measure].mixed.p_value for differences in compared])
    for differences, p_value in zip(compared, adjusted, strict=True):
        differences[measure] = replace(differences[measure], holm_p_value=p_value)


def describe_group(group: Group) -> dict[str, Any]:
    """Return the group as a JSON-ready dict.

    Accuracies are fractions in [0, 1], standard deviations are over seeds (None with one seed).
    """
    first = group.members[0].model

    def spread(value: Callable[[Scored], float | None]) -> dict[str, float | None] | None:
        return _spread([value(one) for one in group.members])

    return {
        "configuration": group.name,
        "model": first.model,
        "activation": first.activation,
        "alpha": first.alpha,
        **curvature_json(curvature_of(first.activation, first.alpha)),
        "attacker_activation": first.attacker_activation,
        "attacker_alpha": first.attacker_alpha,
        "seeds": group.seeds,
        "n": group.members[0].summary.n,
        "val_robust_accuracy": spread(lambda one: one.model.val_robust_accuracy),
        "val_strong_robust_accuracy": spread(lambda one: one.model.val_strong_robust_accuracy),
        "clean_accuracy": spread(lambda one: one.summary.clean_accuracy),
        "robust_accuracy": spread(lambda one: one.summary.robust_accuracy),
        "strong_robust_accuracy": spread(_strong_accuracy),
        **_describe_gap(group),
        **_describe_corruptions(group),
        "accelerator_seconds": math.fsum(one.model.accelerator_seconds for one in group.members),
        "train_images_per_second": spread(lambda one: one.model.train_images_per_second),
        "passes_per_image": spread(lambda one: one.summary.passes_per_image),
        **_describe_difference(group, group.measure),
        "pgd": _describe_difference(group, PGD),
    }


def _describe_gap(group: Group) -> dict[str, Any]:
    """Return the gap between both numbers over seeds, and compared with that of relu."""
    gaps = {one.model.seed: one.strong.gap for one in group.members if one.strong is not None}
    known = group.has_strong
    found = group.gap_difference
    relative = None
    if found is not None:
        relative = {"mean": found.mean, "low": found.low, "high": found.high}
    return {
        "gap": _spread([gap.of_all for gap in gaps.values()]) if known else None,
        "gap_share": _spread([gap.share for gap in gaps.values()]) if known else None,
        "flattered_seeds": [seed for seed, gap in gaps.items() if gap.overestimated],
        "gap_difference_to_relu": relative,
    }


def _describe_corruptions(group: Group) -> dict[str, Any]:
    """Return the accuracy under common corruptions over seeds, {} where it was not measured."""
    found = _spread([one.model.corruption_accuracy for one in group.members])
    return {} if found is None else {"corruption_accuracy": found}


def _strong_accuracy(scored: Scored) -> float | None:
    return None if scored.strong is None else scored.strong.accuracy


def _describe_difference(group: Group, measure: str) -> dict[str, Any]:
    """Return what one number says of the difference to relu."""
    found = group.differences.get(measure)
    difference = None
    if found is not None:
        mixed = asdict(found.mixed) | {"bootstrap": list(found.mixed.bootstrap)}
        difference = {
            "measure": measure,
            "seeds": found.seeds,
            "over_seeds_and_images": mixed | {"holm_p_value": found.holm_p_value},
        }
    return {
        "difference_to_relu": difference,
        "verdict": group.verdict_on(measure),
        "holm_significant": found is not None and found.beyond_noise,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Return mean and standard deviation over seeds; None unless every seed has the figure."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": math.fsum(known) / len(known), "standard_deviation": deviation}
