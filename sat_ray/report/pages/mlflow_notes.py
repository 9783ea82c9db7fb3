"""Descriptions in MLflow, as Markdown: of a sweep, of a configuration, of a robustness card.

MLflow keeps 8,000 characters of a description, so a long leaderboard is cut after whole lines, with
a remark.
"""

import itertools
from collections.abc import Mapping
from typing import Any

from sat_ray.report.formatting import (
    cut_text,
    pgd_name,
    points,
    seeds_text,
    setting_text,
    spread,
    verdict_text,
)
from sat_ray.report.leaderboard.columns import group_columns, row_columns
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.tables import power_text
from sat_ray.report.pages.parts import CHECKS
from sat_ray.report.table import Table, escaped, markdown_table, narrow

LONGEST_TABLE = 5500  # characters
NOTED = {  # figures below a sweep's table, where they were drawn
    "robust_against_curvature": "robust accuracy against curvature",
    "gap_against_curvature": "gap between both verdicts against curvature",
    "clean_against_robust": "clean against robust accuracy",
}


def sweep_note(
    board: Mapping[str, Any],
    *,
    command: str,
    figures: Mapping[str, str] | None = None,
    compare: str = "",
) -> str:
    """Describe a sweep: headline, leaderboard, how to compare in MLflow, how to reproduce it.

    command: what reproduces the sweep; figures: addresses of pictures to show, by what they show;
    compare: address of the page that compares the configurations, "" for none.
    """
    headline = board["headline"]
    table, left = _cut_table(board)
    parts = [
        f"### {escaped(headline['sentence'])}",
        escaped(headline["detail"]),
        f"**{escaped(cut_text(board))}**" if cut_text(board) else "",
        f"{escaped(setting_text(board))} · {seeds_text(board)}",
        table,
        f"{left} more configurations: leaderboard.md among the artifacts." if left else "",
        _about_figures(board),
        escaped(power_text(board)),
        *(f"![{name}]({address})" for name, address in (figures or {}).items()),
        "#### Compare",
        f"[Compare the configurations]({compare})" if compare else "",
        f"`{board['measure']}`, `against_relu/difference` with its `low` and `high`, "
        "`against_relu/beyond_noise` (1: the difference is real) and `cost/accelerator_seconds` "
        "show which activation is best, with which α and at what cost. A name starts with α; of a "
        "pair it is `(model's activation|attacker's)`. Below each configuration are its seeds, "
        "below `search` its trials.",
        "#### Reproduce",
        f"```\n{command}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def _cut_table(board: Mapping[str, Any]) -> tuple[str, int]:
    """Return as many whole lines of the leaderboard as fit, and the number of lines left out."""
    lines = markdown_table(Table(narrow(group_columns(board)), board["groups"])).splitlines()
    lengths = itertools.accumulate(len(line) + 1 for line in lines)
    shown = [line for line, length in zip(lines, lengths, strict=True) if length <= LONGEST_TABLE]
    return "\n".join(shown), len(lines) - len(shown)


def _about_figures(board: Mapping[str, Any]) -> str:
    """Say what the figures of the table are."""
    strong = ""
    if board["measure"] == STRONG:
        strong = f"Strong: under {pgd_name(board)} and {board['strong_attack']['name']}. "
    return escaped(
        f"{strong}Accuracies are means over seeds ± standard deviation, in points. ★ was chosen on "
        "the validation split. Against relu: paired by seed and image, ± half the 95 % interval."
    )


def configuration_note(group: Mapping[str, Any], *, board: Mapping[str, Any]) -> str:
    """Describe one configuration: its accuracies over seeds, its difference to relu, its seeds."""
    own = [row for row in board["rows"] if row["configuration"] == group["configuration"]]
    columns = [one for one in narrow(row_columns(board)) if one.title != "configuration"]
    accuracies = f"{_robustness(group, board=board)}, clean {spread(group['clean_accuracy'])} %"
    table = markdown_table(Table(columns, sorted(own, key=lambda row: row["seed"])))
    return (
        f"**{escaped(group['configuration'])}**: {accuracies} (mean ± standard deviation over "
        f"{len(own)} seeds). Against relu: {verdict_text(group)}.\n\n{table}"
    )


def _robustness(group: Mapping[str, Any], *, board: Mapping[str, Any]) -> str:
    """Name the figure to quote, with the paper's measure beside it."""
    pgd = f"{spread(group['robust_accuracy'])} %"
    if group[STRONG] is None:
        return f"robust {pgd} under {pgd_name(board)}"
    return f"strong robust {spread(group[STRONG])} % ({pgd_name(board)}: {pgd})"


def card_note(card: Mapping[str, Any], *, name: str) -> str:
    """Describe a robustness card: verdict, accuracies under ever stronger attacks, checks."""
    ladder = " → ".join(
        f"{step} {points(value)}"
        for step, value in sorted(card["ladder"].items(), key=lambda step: -step[1])
    )
    return (
        f"### {escaped(name)}: {card['verdict']}\n\n"
        f"Claimed under {escaped(str(card['attack']))}. Accuracy in points on {card['n']} "
        f"validation images: {ladder}.\n\n"
        f"{markdown_table(Table(narrow(CHECKS), card['checks']))}"
    )
