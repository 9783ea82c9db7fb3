"""How the report spells numbers, so that the terminal, Markdown, HTML and figures agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.sweep.config import money_text

MINUS = "−"
ABSENT = "–"
_NORMS = {"linf": "L∞", "l2": "L2"}


def points(fraction: float, *, signed: bool = False) -> str:
    """Spell a fraction or a difference of fractions in points with one decimal, `4.1`, `+4.1` or `−0.3`."""
    value = round(100 * fraction, 1) + 0.0  # adding 0 turns a rounded −0.0 into 0.0
    return (f"{value:+.1f}" if signed else f"{value:.1f}").replace("-", MINUS)


def spread(value: Mapping[str, float | None]) -> str:
    """Spell {"mean", "standard_deviation"} in points, `42.3 ± 0.4`; with one seed the mean alone."""
    mean, deviation = value["mean"], value["standard_deviation"]
    assert mean is not None
    return points(mean) if deviation is None else f"{points(mean)} ± {points(deviation)}"


def interval(bounds: Sequence[float]) -> str:
    """Spell an interval of fractions in points, `40.1 – 44.5`."""
    return f"{points(bounds[0])} – {points(bounds[1])}"


def pixels(value: float) -> str:
    """Spell a distance in [0, 1] pixels, as k/255 where it is one."""
    k = value * 255
    return f"{round(k)}/255" if abs(k - round(k)) < 1e-6 and round(k) > 0 else f"{value:.4g}"


def threat_text(board: Mapping[str, Any]) -> str:
    """Spell the threat model of a board, `L∞, ε = 4/255`."""
    threat_model = board["threat_model"]
    return f"{_NORMS.get(threat_model['norm'], threat_model['norm'])}, ε = {pixels(threat_model['epsilon'])}"


def attack_text(board: Mapping[str, Any]) -> str:
    """Spell the attack of a board, `pgd-200, 200 steps of 1/255, 1 restart`; what it does not say is left out."""
    attack = board["attack"]
    parts = [str(attack["name"])] if "name" in attack else []
    if "steps" in attack and "step_size" in attack:
        parts.append(f"{attack['steps']} steps of {pixels(attack['step_size'])}")
    if "restarts" in attack:
        parts.append(f"{attack['restarts']} restart" + ("" if attack["restarts"] == 1 else "s"))
    return ", ".join(parts)


def pgd_name(board: Mapping[str, Any]) -> str:
    """Name the paper's measure, as the attack of the board is called: `PGD-200`."""
    return str(board["attack"].get("name", "PGD")).replace("pgd", "PGD")


def setting_text(board: Mapping[str, Any], *, with_strong: bool = True) -> str:
    """Spell what the accuracies of a board refer to: dataset, threat model, attacks, number of images. with_strong: the strong ones too."""
    strong = board.get("strong_attack") if with_strong else None
    beside = f"; strong: {strong['name']}" if strong else ""
    return f"{board['dataset']} · {threat_text(board)} · {attack_text(board)}{beside} · n = {board['rows'][0]['n']:,} images"


def seeds_text(board: Mapping[str, Any]) -> str:
    """Spell how many seeds stand behind the configurations, `3 seeds` or `1 to 3 seeds`."""
    counts = sorted({len(group["seeds"]) for group in board["groups"]})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return "1 seed" if counts == [1] else f"{counts[0]} seeds"


def seconds(value: float) -> str:
    """Spell a duration, `42 s`, `12.5 min`, `3.2 h`."""
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def amount_text(value: float | None) -> str:
    """Spell an amount of money; where there is none, say so."""
    return ABSENT if value is None else money_text(value)


def cut_text(board: Mapping[str, Any]) -> str:
    """Say that the budget cut the search that a board rests on; "" where it did not, or where that is not known."""
    searched = board.get("search") or {}
    return str(searched["sentence"]) if searched.get("cut_by_budget") else ""


def verdict_text(group: Mapping[str, Any]) -> str:
    """Spell the verdict on a group; an interval that does not survive the correction for many comparisons says so."""
    verdict = str(group["verdict"])
    return verdict + (
        " (not after Holm)" if verdict.endswith("points") and not group["holm_significant"] else ""
    )


def join_names(names: Sequence[str]) -> str:
    """Join names into `a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
