"""How the report spells numbers, the same in the terminal, Markdown, HTML and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.threat import length_text

MINUS = "−"
ABSENT = "–"
_NORMS = {"linf": "L∞", "l2": "L2"}


def points(fraction: float) -> str:
    """Spell a fraction or a difference of fractions in points, `4.1` or `−0.3`."""
    value = round(100 * fraction, 1) + 0.0  # adding 0 turns a rounded −0.0 into 0.0
    return f"{value:.1f}".replace("-", MINUS)


def signed_points(fraction: float) -> str:
    """Spell a difference of fractions in points with its sign, `+4.1` or `−0.3`."""
    value = round(100 * fraction, 1) + 0.0
    return f"{value:+.1f}".replace("-", MINUS)


def spread(value: Mapping[str, float | None]) -> str:
    """Spell {"mean", "standard_deviation"} in points, `42.3 ± 0.4`; one seed: the mean alone."""
    mean = value["mean"]
    deviation = value["standard_deviation"]
    assert mean is not None
    return points(mean) if deviation is None else f"{points(mean)} ± {points(deviation)}"


def interval(bounds: Sequence[float]) -> str:
    """Spell an interval of fractions in points, `40.1 – 44.5`."""
    return f"{points(bounds[0])} – {points(bounds[1])}"


def limits(bounds: Sequence[float]) -> str:
    """Spell an interval of differences in points, `−0.2 to +1.3`."""
    return f"{signed_points(bounds[0])} to {signed_points(bounds[1])}"


def p_text(value: float) -> str:
    """Spell a p-value, `0.031` or `< 0.001`."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def plural(count: int, noun: str) -> str:
    """Spell a count with its noun, `1 seed` or `1,200 seeds`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def threat_text(board: Mapping[str, Any]) -> str:
    """Spell the threat model of a leaderboard, `L∞, ε = 4/255`."""
    norm = board["threat_model"]["norm"]
    return f"{_NORMS.get(norm, norm)}, ε = {length_text(norm, board['threat_model']['epsilon'])}"


def attack_text(board: Mapping[str, Any]) -> str:
    """Spell the attack of a leaderboard, `pgd-200, 200 steps of 1/255, 1 restart`.

    Settings that it does not have are omitted.
    """
    attack = board["attack"]
    parts = [str(attack["name"])] if "name" in attack else []
    if "steps" in attack and "step_size" in attack:
        step = length_text(board["threat_model"]["norm"], attack["step_size"])
        parts.append(f"{attack['steps']} steps of {step}")
    if "restarts" in attack:
        parts.append(plural(attack["restarts"], "restart"))
    return ", ".join(parts)


def pgd_name(board: Mapping[str, Any]) -> str:
    """Name the paper's measure, as the attack of the leaderboard is called: `PGD-200`."""
    return str(board["attack"].get("name", "PGD")).replace("pgd", "PGD")


def setting_text(board: Mapping[str, Any], *, with_strong: bool = True) -> str:
    """Spell what the accuracies refer to: dataset, threat model, attacks, number of images.

    with_strong: name the strong attacks too.
    """
    strong = board.get("strong_attack") if with_strong else None
    attack = f"{attack_text(board)}; strong: {strong['name']}" if strong else attack_text(board)
    images = f"n = {board['rows'][0]['n']:,} images"
    return " · ".join([board["dataset"], threat_text(board), attack, images])


def seeds_text(board: Mapping[str, Any]) -> str:
    """Spell the number of seeds of the configurations, `3 seeds` or `1 to 3 seeds`."""
    counts = sorted({len(group["seeds"]) for group in board["groups"]})
    most = plural(counts[-1], "seed")
    return f"{counts[0]} to {most}" if len(counts) > 1 else most


def seconds(value: float) -> str:
    """Spell a duration, `42 s`, `12.5 min`, `3.2 h`."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def cut_text(board: Mapping[str, Any]) -> str:
    """Say that the budget cut the search; "" where it did not, or where that is not known."""
    searched = board.get("search") or {}
    return str(searched["sentence"]) if searched.get("cut_by_budget") else ""


def verdict_text(group: Mapping[str, Any]) -> str:
    """Spell the verdict on a group, with a remark where Holm's correction takes it back."""
    verdict = str(group["verdict"])
    uncorrected = verdict.endswith("points") and not group["holm_significant"]
    return f"{verdict} (not after Holm)" if uncorrected else verdict


def join_names(names: Sequence[str]) -> str:
    """Join names into `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
