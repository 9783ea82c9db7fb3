"""What people read in the tracker: Markdown for the run of a sweep, of a configuration, and for a registered model version.

MLflow keeps 8,000 characters of a description, so a long leaderboard is cut after whole lines and says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.report.text import cut_text, interval, points, seconds, seeds_text, setting_text, spread, verdict_text

LONGEST_TABLE = 40  # configurations: about 90 characters each


def sweep_note(board: Mapping[str, Any], *, command: str, figure: str = "", compare: str = "") -> str:
    """Describe a sweep: the headline, the leaderboard, how to compare in the tracker's own pages, how to do it again.

    command: what reproduces the sweep; figure: address of a picture to show, "" for none;
    compare: address of the page that compares the configurations, "" for none.
    """
    headline, groups = board["headline"], board["groups"]
    shown = groups[:LONGEST_TABLE]
    left = len(groups) - len(shown)
    parts = [
        f"### {_cell(headline['sentence'])}",
        f"{_cell(headline['detail'])}",
        f"**{_cell(cut_text(board))}**" if cut_text(board) else "",
        f"{_cell(setting_text(board))} · {seeds_text(board)}",
        _table(
            ("", "configuration", "robust (%)", "clean (%)", "against relu", "training"), [_cells(group, board=board) for group in shown]
        ),
        f"{left} more configurations: leaderboard.md among the artifacts." if left else "",
        "Accuracies are means over seeds ± standard deviation. ★ was chosen on the validation split. Against relu: paired by seed and "
        "image, ± half the 95 % interval.",
        f"![clean against robust accuracy]({figure})" if figure else "",
        "#### Compare",
        f"[Compare the configurations]({compare})" if compare else "",
        "`robust_accuracy`, `against_relu/difference` with its `low` and `high`, "
        "`against_relu/beyond_noise` (1: the difference is real) and `cost/accelerator_seconds` "
        "answer which activation, which α, at what cost. A name starts with α; of a pair it is "
        "`(model's activation|attacker's)`. Below each configuration are its seeds, below `search` its trials.",
        "#### Reproduce",
        f"```\n{command}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def configuration_note(group: Mapping[str, Any], *, rows: Sequence[Mapping[str, Any]]) -> str:
    """Describe one configuration: its accuracies over seeds, what its difference to relu amounts to, and its seeds. rows: of the board."""
    own = [row for row in rows if row["configuration"] == group["configuration"]]
    return "\n\n".join(
        [
            f"**{_cell(group['configuration'])}**: robust {spread(group['robust_accuracy'])} %, clean {spread(group['clean_accuracy'])} % "
            f"(mean ± standard deviation over {len(own)} seeds). Against relu: {verdict_text(group)}.",
            _table(
                ("seed", "robust (%)", "95 % over images", "clean (%)", "on validation (%)", "training"),
                [
                    (
                        str(row["seed"]),
                        points(row["robust_accuracy"]),
                        interval(row["robust_accuracy_interval"]),
                        points(row["clean_accuracy"]),
                        points(row["val_robust_accuracy"]),
                        seconds(row["accelerator_seconds"]),
                    )
                    for row in sorted(own, key=lambda row: row["seed"])
                ],
            ),
        ]
    )


def card_note(card: Mapping[str, Any], *, name: str) -> str:
    """Describe a robustness card: its verdict, the ladder of ever stronger attacks, and every demand with what was found."""
    ladder = " → ".join(f"{step} {points(value)}" for step, value in sorted(card["ladder"].items(), key=lambda step: -step[1]))
    return "\n\n".join(
        [
            f"### {_cell(name)}: {card['verdict']}",
            f"Claimed under {_cell(str(card['attack']))}. Accuracy in points on {card['n']} validation images: {ladder}.",
            _table(
                ("", "demand", "found"),
                [("✓" if check["passed"] else "FLAG", _cell(check["name"]), _cell(check["found"])) for check in card["checks"]],
            ),
        ]
    )


def _cells(group: Mapping[str, Any], *, board: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "★" if group["configuration"] == board["champion"]["configuration"] else "",
        _cell(group["configuration"]),
        spread(group["robust_accuracy"]),
        spread(group["clean_accuracy"]),
        verdict_text(group),
        seconds(group["accelerator_seconds"]),
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, [":--"] * len(header), *rows))


def _cell(text: str) -> str:
    """Escape what would end a table cell or start HTML in a Markdown viewer."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
