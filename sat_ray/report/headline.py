"""The one sentence a reader remembers, written so that it never claims more than the seeds and the images carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sat_ray.report.groups import Group
from sat_ray.report.statistics import MINIMUM_SEEDS
from sat_ray.report.text import join_names, points


def write_headline(champion: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """Return {"sentence", "detail", "difference", "interval", "bootstrap_interval", "effect_size", "seeds"}: the champion against relu.

    The champion was chosen by validation, so its comparison on the test split is not picked for being large. A difference is claimed
    only if it holds over seeds and images after Holm's correction (`Group.beyond_noise`). interval: over seeds and images.
    """
    mixed, over_seeds = champion.mixed_difference, champion.robust_difference
    return {
        "sentence": _sentence(champion, groups),
        "detail": _detail(champion),
        "difference": None if mixed is None else mixed.mean,
        "interval": None if mixed is None else [mixed.low, mixed.high],
        "bootstrap_interval": None if mixed is None else list(mixed.bootstrap),
        "effect_size": None if over_seeds is None else over_seeds.effect_size,
        "seeds": champion.common_seeds,
    }


def _sentence(champion: Group, groups: Sequence[Group]) -> str:
    mixed, baseline = champion.mixed_difference, champion.baseline
    if champion.beyond_noise and mixed is not None and baseline is not None:
        verb = "beats" if mixed.mean > 0 else "trails"
        size = f"{points(abs(mixed.mean))} ± {points(mixed.half_width)} points"
        return f"{champion.name} {verb} {baseline.name} by {size} of robust accuracy over {champion.common_seeds} seeds"
    if all(group.baseline is None for group in groups):
        return f"{champion.name} is best by validation; without a relu baseline no difference is claimed"
    compared = [group for group in groups if group.mixed_difference is not None]
    if not compared:
        seeds = max(group.common_seeds for group in groups)
        return f"{champion.name} is best by validation; {_seeds(seeds)} cannot tell activations apart ({MINIMUM_SEEDS} are needed)"
    seeds = max(group.common_seeds for group in compared)
    others = [f"{group.name} ({group.verdict})" for group in compared if group.beyond_noise]
    if not others:
        return f"No activation differs from relu beyond noise over {seeds} seeds"
    place = "best by validation" if champion.is_baseline else "best by validation, but within noise of relu"
    return f"{champion.name} is {place}; beyond noise against relu over {seeds} seeds: {join_names(others)}"


def _detail(champion: Group) -> str:
    chosen = f"{champion.name} was chosen by mean robust accuracy on the validation split"
    if champion.is_baseline:
        return f"{champion.name}, the baseline, was chosen by mean robust accuracy on the validation split."
    mixed, over_seeds = champion.mixed_difference, champion.robust_difference
    if mixed is None or over_seeds is None:
        return f"{chosen}; {champion.verdict}."
    bounds = (("over seeds and images", mixed.low, mixed.high), ("by bootstrap", *mixed.bootstrap))
    intervals = "; ".join(f"{points(low, signed=True)} to {points(high, signed=True)} points {name}" for name, low, high in bounds)
    effect = "" if over_seeds.effect_size is None else f" Hedges' g over seeds: {over_seeds.effect_size:+.1f}.".replace("-", "−")
    return (
        f"{chosen}. Its difference to relu on the test split, paired by seed and image, is {points(mixed.mean, signed=True)} points; "
        f"95 % intervals: {intervals}.{effect}"
    )


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
