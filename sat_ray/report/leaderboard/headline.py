"""The one sentence a reader remembers, written so that it never claims more than the seeds and the images carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.report.formatting import join_names, points
from sat_ray.report.leaderboard.groups import MINIMUM_SEEDS, PGD, STRONG, Compared, Group

_NAMES = {STRONG: "strong robust accuracy", PGD: "robust accuracy"}


def write_headline(
    champion: Group, groups: Sequence[Group], *, attack: str, chosen_by: str = "val_robust_accuracy"
) -> dict[str, Any]:
    """Return {"sentence", "detail", "measure", "difference", "interval", "bootstrap_interval", "seeds"}.

    The champion was chosen by validation, so its comparison on the test split is not picked for being large. A difference is claimed
    only if it holds over seeds and images after Holm's correction (`Group.beyond_noise`). interval: over seeds and images. attack: name
    of the PGD attack; chosen_by: the figure that chose the champion. Where there is a strong number, everything rests on it.
    """
    found = champion.difference
    return {
        "sentence": _sentence(champion, groups),
        "detail": _detail(champion, attack=attack, chosen_by=chosen_by),
        "measure": champion.measure,
        "difference": None if found is None else found.mixed.mean,
        "interval": None if found is None else [found.mixed.low, found.mixed.high],
        "bootstrap_interval": None if found is None else list(found.mixed.bootstrap),
        "seeds": champion.common_seeds,
    }


def headline_line(board: Mapping[str, Any]) -> str:
    """Return what a finished sweep prints last: its first sentence, and a warning where PGD flatters the champion."""
    sentence = f"{board['headline']['sentence']}."
    row = board["champion"]["row"]
    if row.get("pgd_flatters"):
        sentence += f" PGD flatters the champion: quote its strong number, {points(row['strong_robust_accuracy'])} %."
    return sentence


def _sentence(champion: Group, groups: Sequence[Group]) -> str:
    found, baseline = champion.difference, champion.baseline
    name = _NAMES[champion.measure]
    if champion.beyond_noise and found is not None and baseline is not None:
        verb = "beats" if found.mixed.mean > 0 else "trails"
        size = f"{points(abs(found.mixed.mean))} ± {points(found.mixed.half_width)} points"
        return f"{champion.name} {verb} {baseline.name} by {size} of {name} over {champion.common_seeds} seeds"
    if all(group.baseline is None for group in groups):
        return f"{champion.name} is best by validation; without a relu baseline no difference is claimed"
    compared = [group for group in groups if group.difference is not None]
    if not compared:
        seeds = max(group.common_seeds for group in groups)
        if seeds >= MINIMUM_SEEDS:  # seeds enough, but no strong numbers on both sides
            return f"{champion.name} is best by validation; without strong numbers of relu and another activation no difference is claimed"
        return f"{champion.name} is best by validation; {_seeds(seeds)} cannot tell activations apart ({MINIMUM_SEEDS} are needed)"
    seeds = max(group.common_seeds for group in compared)
    others = [f"{group.name} ({group.verdict})" for group in compared if group.beyond_noise]
    if not others:
        return f"No activation differs from relu beyond noise over {seeds} seeds"
    place = (
        "best by validation"
        if champion.is_baseline
        else "best by validation, but within noise of relu"
    )
    return f"{champion.name} is {place}; beyond noise against relu over {seeds} seeds: {join_names(others)}"


def _detail(champion: Group, *, attack: str, chosen_by: str) -> str:
    figure = _NAMES[STRONG if chosen_by == "val_strong_robust_accuracy" else PGD]
    chosen = f"was chosen by mean {figure} on the validation split"
    if champion.is_baseline:
        return f"{champion.name}, the baseline, {chosen}."
    found = champion.difference
    if found is None:
        return f"{champion.name} {chosen}; {champion.verdict}."
    mixed = found.mixed
    bounds = (("over seeds and images", mixed.low, mixed.high), ("by bootstrap", *mixed.bootstrap))
    intervals = "; ".join(
        f"{points(low, signed=True)} to {points(high, signed=True)} points {name}"
        for name, low, high in bounds
    )
    return (
        f"{champion.name} {chosen}. Its difference to relu on the test split, paired by seed and image, is "
        f"{points(mixed.mean, signed=True)} points; 95 % intervals: {intervals}.{_beside(champion, attack=attack)}"
    )


def _beside(champion: Group, *, attack: str) -> str:
    """Say what the paper's measure says of the same difference, where it does not decide."""
    if champion.measure == PGD or PGD not in champion.differences:
        return ""
    pgd: Compared = champion.differences[PGD]
    verdict = "beyond noise" if pgd.beyond_noise else "within noise"
    return f" Under {attack} alone, the paper's measure, it is {points(pgd.mixed.mean, signed=True)} points ({verdict})."


def _seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"
