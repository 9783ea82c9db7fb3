"""The first sentence of a report, which claims no more than the seeds and the images show."""

from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.report.formatting import join_names, limits, points, signed_points
from sat_ray.report.leaderboard.groups import MINIMUM_SEEDS, PGD, STRONG, Group

_NAMES = {STRONG: "strong robust accuracy", PGD: "robust accuracy"}


def write_headline(
    champion: Group, groups: Sequence[Group], *, attack: str, chosen_by: str = "val_robust_accuracy"
) -> dict[str, Any]:
    """Return the headline and its figures.

    Keys: "sentence", "detail", "measure", "difference", "interval" (over seeds and images),
    "bootstrap_interval", "seeds".
    The champion was chosen by validation, so its comparison on the test split is not picked for
    being large. A difference is claimed only if it holds over seeds and images after Holm's
    correction (`Group.beyond_noise`).
    attack: name of the PGD attack; chosen_by: the figure that chose the champion.
    """
    found = None if champion.difference is None else champion.difference.mixed
    return {
        "sentence": _sentence(champion, groups),
        "detail": _detail(champion, attack=attack, chosen_by=chosen_by),
        "measure": champion.measure,
        "difference": None if found is None else found.mean,
        "interval": None if found is None else [found.low, found.high],
        "bootstrap_interval": None if found is None else list(found.bootstrap),
        "seeds": champion.common_seeds,
    }


def headline_line(board: Mapping[str, Any]) -> str:
    """Return what a finished sweep prints last: its first sentence, and a warning.

    The warning stands where PGD overestimates the champion.
    """
    sentence = f"{board['headline']['sentence']}."
    row = board["champion"]["row"]
    if not row.get("pgd_flatters"):
        return sentence
    number = points(row["strong_robust_accuracy"])
    return f"{sentence} PGD overestimates the champion: quote its strong number, {number} %."


def _sentence(champion: Group, groups: Sequence[Group]) -> str:
    found = champion.difference
    baseline = champion.baseline
    if champion.beyond_noise and found is not None and baseline is not None:
        verb = "beats" if found.mixed.mean > 0 else "is worse than"
        size = f"{points(abs(found.mixed.mean))} ± {points(found.mixed.half_width)} points"
        return (
            f"{champion.name} {verb} {baseline.name} by {size} of {_NAMES[champion.measure]} "
            f"over {champion.common_seeds} seeds"
        )
    compared = [group for group in groups if group.difference is not None]
    if not compared:
        return f"{champion.name} is best by validation; {_why_not_compared(groups)}"
    seeds = max(group.common_seeds for group in compared)
    others = [f"{group.name} ({group.verdict})" for group in compared if group.beyond_noise]
    if not others:
        return f"No activation differs from relu beyond noise over {seeds} seeds"
    noise = "" if champion.is_baseline else ", but within noise of relu"
    return (
        f"{champion.name} is best by validation{noise}; beyond noise against relu over {seeds} "
        f"seeds: {join_names(others)}"
    )


def _why_not_compared(groups: Sequence[Group]) -> str:
    """Say why no configuration has a difference to relu."""
    if all(group.baseline is None for group in groups):
        return "without a relu baseline no difference is claimed"
    seeds = max(group.common_seeds for group in groups)
    if seeds < MINIMUM_SEEDS:
        return f"comparing activations takes {MINIMUM_SEEDS} seeds, got {seeds}"
    return "without strong numbers of relu and another activation no difference is claimed"


def _detail(champion: Group, *, attack: str, chosen_by: str) -> str:
    figure = _NAMES[STRONG if chosen_by == "val_strong_robust_accuracy" else PGD]
    chosen = f"was chosen by mean {figure} on the validation split"
    if champion.is_baseline:
        return f"{champion.name}, the baseline, {chosen}."
    if champion.difference is None:
        return f"{champion.name} {chosen}; {champion.verdict}."
    found = champion.difference.mixed
    return (
        f"{champion.name} {chosen}. Its difference to relu on the test split, paired by seed and "
        f"image, is {signed_points(found.mean)} points; 95 % intervals: "
        f"{limits((found.low, found.high))} points over seeds and images; "
        f"{limits(found.bootstrap)} points by bootstrap.{_under_pgd(champion, attack=attack)}"
    )


def _under_pgd(champion: Group, *, attack: str) -> str:
    """Say what the paper's measure says of the same difference, where it does not decide."""
    if champion.measure == PGD or PGD not in champion.differences:
        return ""
    pgd = champion.differences[PGD]
    verdict = "beyond noise" if pgd.beyond_noise else "within noise"
    return (
        f" Under {attack} alone, the paper's measure, it is {signed_points(pgd.mixed.mean)} "
        f"points ({verdict})."
    )
