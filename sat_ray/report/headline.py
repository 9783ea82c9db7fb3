"""The one sentence a reader remembers, written so that it never claims more than the seeds and the images carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sat_ray.report.groups import Group
from sat_ray.report.statistics import MINIMUM_SEEDS, hierarchical_bootstrap
from sat_ray.report.text import join_names, points


def write_headline(champion: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """Return {"sentence", "detail", "difference", "interval", "bootstrap_interval", "seeds"} about the champion against relu.

    The champion was chosen by validation, so its comparison on the test split is not picked for being large. It is claimed only if
    the seed-paired interval holds after Holm's correction and the bootstrap over seeds and images excludes zero too; the sentence
    carries the wider of the two.
    """
    bootstrap = bootstrap_against_baseline(champion)
    difference = champion.robust_difference
    return {
        "sentence": _sentence(champion, groups, bootstrap=bootstrap),
        "detail": _detail(champion, bootstrap=bootstrap),
        "difference": None if difference is None else difference.mean,
        "interval": None if difference is None else [difference.low, difference.high],
        "bootstrap_interval": None if bootstrap is None else list(bootstrap),
        "seeds": champion.common_seeds,
    }


def bootstrap_against_baseline(group: Group) -> tuple[float, float] | None:
    """Return the hierarchical bootstrap interval of the difference in robust accuracy to relu, None where none can be made."""
    if group.robust_difference is None or group.baseline is None:
        return None
    seeds = group.robust_difference.seeds
    return hierarchical_bootstrap(_robust_by_seed(group, seeds=seeds), _robust_by_seed(group.baseline, seeds=seeds))


def _robust_by_seed(group: Group, *, seeds: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return (S, N) bool, one row per seed in the order given."""
    by_seed = {one.model.seed: one.images.robust for one in group.members}
    return np.stack([by_seed[seed] for seed in seeds])


def _sentence(champion: Group, groups: Sequence[Group], *, bootstrap: tuple[float, float] | None) -> str:
    difference, baseline = champion.robust_difference, champion.baseline
    claimed = champion.beyond_noise and bootstrap is not None and not bootstrap[0] <= 0.0 <= bootstrap[1]
    if claimed and difference is not None and baseline is not None and bootstrap is not None:
        verb = "beats" if difference.mean > 0 else "trails"
        # Whichever interval is wider: few seeds may agree by luck, and many images say nothing about other seeds.
        half_width = max(difference.half_width, (bootstrap[1] - bootstrap[0]) / 2)
        size = f"{points(abs(difference.mean))} ± {points(half_width)} points"
        return f"{champion.name} {verb} {baseline.name} by {size} of robust accuracy over {len(difference.seeds)} seeds"
    if all(group.baseline is None for group in groups):
        return f"{champion.name} is best by validation; without a relu baseline no difference is claimed"
    compared = [group for group in groups if group.robust_difference is not None]
    if not compared:
        seeds = max(group.common_seeds for group in groups)
        return f"{champion.name} is best by validation; {_seeds(seeds)} cannot tell activations apart ({MINIMUM_SEEDS} are needed)"
    others = [group.name for group in compared if group.beyond_noise and group is not champion]
    if not others and champion.beyond_noise:
        return f"{champion.name} is best by validation; its difference to relu holds over seeds, but not over seeds and images"
    if not others:
        seeds = max(len(group.robust_difference.seeds) for group in compared if group.robust_difference is not None)
        return f"No activation differs from relu beyond noise over {seeds} seeds"
    if champion.is_baseline:
        return f"{champion.name} is best by validation; beyond noise against it: {join_names(others)}"
    return f"{champion.name} is best by validation, but within noise of relu; beyond noise against relu: {join_names(others)}"


def _detail(champion: Group, *, bootstrap: tuple[float, float] | None) -> str:
    difference = champion.robust_difference
    if champion.is_baseline:
        return f"{champion.name}, the baseline, was chosen by mean robust accuracy on the validation split."
    if difference is None:
        return f"{champion.name} was chosen by mean robust accuracy on the validation split; {champion.verdict}."
    over_seeds = f"{points(difference.low, signed=True)} to {points(difference.high, signed=True)} points over seeds"
    over_both = ""
    if bootstrap is not None:
        low, high = (points(bound, signed=True) for bound in bootstrap)
        over_both = f", {low} to {high} points over seeds and images"
    return (
        f"{champion.name} was chosen by mean robust accuracy on the validation split. Its difference to relu on the test split, "
        f"paired by seed, is {points(difference.mean, signed=True)} points; 95 % intervals: {over_seeds}{over_both}."
    )


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
