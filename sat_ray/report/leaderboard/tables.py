"""The board as Markdown and as a table for the terminal. Both read the board alone; what stands in a cell is in `columns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from sat_ray.report.formatting import cut_text, pgd_name, points, seeds_text, setting_text
from sat_ray.report.leaderboard.columns import (
    NUMBER,
    STRIP,
    Column,
    compared_groups,
    difference_columns,
    group_columns,
    narrow,
    row_columns,
    table1_columns,
    table1_rows,
)
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.strong import FLATTERED, LARGEST_SHARE


def notes_of(board: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know about the figures of a board."""
    by_strong = board["measure"] == STRONG
    return [
        "Accuracies are in points, over all images. Robust: correct at every visited point of every attack; clean errors count as broken.",
        *(_strong_notes(board) if by_strong else []),
        "Per configuration: mean ± standard deviation over seeds. Against relu: difference paired by seed and image ± half the 95 % "
        "interval over seeds and images.",
        "Differences that do not survive Holm's correction over all configurations say so. Rows per seed: 95 % Wilson interval over "
        "images.",
        "Curvature: the largest absolute second derivative of the activation; infinite (∞) for relu.",
        f"The champion (★) is chosen by mean {'strong ' if _strong_choice(board) else ''}robust accuracy on the validation split, never "
        "by the test split, among models whose robustness card says PASS, if any does.",
    ]


def _strong_notes(board: Mapping[str, Any]) -> list[str]:
    name = pgd_name(board)
    without = [group["configuration"] for group in board["groups"] if group[STRONG] is None]
    return [
        f"Strong robust: correct under {name}, the paper's measure, and under {board['strong_attack']['name']} on the same images. It "
        "decides order, champion and claims.",
        f"Gap: images that survive {name} and fall to the strong attacks, in points. A wide gap means that gradients mislead PGD, so its "
        f"number says little. “{FLATTERED}”: more than {100 * LARGEST_SHARE:g} % of PGD's survivors fall (lower end of the 95 % interval).",
        *(
            [
                f"No strong number, therefore last and in no order with the others: {', '.join(without)}."
            ]
            if without
            else []
        ),
    ]


def _strong_choice(board: Mapping[str, Any]) -> bool:
    return bool(board["champion"]["selected_by"] == "val_strong_robust_accuracy")


def power_text(board: Mapping[str, Any]) -> str:
    """Say which difference to relu the sweep could see; "" where it compared nothing."""
    power = board.get("power")
    if power is None:
        return ""
    smallest, planned = power["smallest_difference"], power["smallest_difference_with_10_seeds"]
    more = (
        "" if planned is None or planned >= 1 else f" With 10 seeds it would see {points(planned)}."
    )
    if smallest >= 1:
        return f"This sweep has too few seeds ({power['seeds']}) to see any difference to relu with {100 * power['power']:.0f} % power.{more}"
    others = (
        "" if power["comparisons"] == 1 else f", corrected for {power['comparisons']} comparisons"
    )
    return (
        f"This sweep could see differences to relu of {points(smallest)} points and more ({100 * power['power']:.0f} % "
        f"power, {power['seeds']} seeds, {power['n']:,} images{others}); smaller ones may be there unseen.{more}"
    )


def to_markdown(board: Mapping[str, Any]) -> str:
    """Return the board as Markdown: headline, configurations, differences, Table 1, rows per seed, notes."""
    headline, compared = board["headline"], compared_groups(board)
    parts = [
        f"# {escaped(board['sweep'])}",
        f"**{escaped(headline['sentence'])}.** {escaped(headline['detail'])}",
        f"{escaped(setting_text(board))} · {seeds_text(board)} · {card_text(board)}",
        *([f"**{escaped(cut_text(board))}**"] if cut_text(board) else []),
        "## Configurations",
        markdown_table(group_columns(board), board["groups"]),
        escaped(power_text(board)),
        *(
            [
                "## Against relu: over seeds and images",
                markdown_table(difference_columns(board), compared),
            ]
            if compared
            else []
        ),
        "## Table 1: where the gradient is improved",
        markdown_table(table1_columns(board), table1_rows(board)),
        "## Rows",
        markdown_table(row_columns(board), board["rows"]),
        "\n".join(f"- {escaped(note)}" for note in notes_of(board)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_terminal(board: Mapping[str, Any]) -> Table:
    """Return one line per configuration as a rich table; names are shown literally, markup in them included."""
    table = Table(title=Text(board["sweep"]), title_justify="left")
    caption = [
        f"{setting_text(board)} · {seeds_text(board)}",
        f"★ by validation, {card_text(board)}",
        cut_text(board),
        power_text(board),
    ]
    table.caption = Text("\n".join(filter(None, caption)))
    columns = narrow(group_columns(board))
    for column in columns:
        number = column.kind == NUMBER
        remarks = column.title in ("against relu", "gap")  # whole sentences, which need lines
        title = column.title.replace(" ", "\n") if number else column.title
        table.add_column(
            title,
            justify="right" if number else "left",
            no_wrap=number and not remarks,
            overflow="fold",
        )
    for group in board["groups"]:
        champion = group["configuration"] == board["champion"]["configuration"]
        table.add_row(
            *(Text(column.cell(group).line) for column in columns),
            style="bold" if champion else None,
        )
    return table


def card_text(board: Mapping[str, Any]) -> str:
    """Say what the champion's robustness card says."""
    verdict = board["champion"].get("robustness_card")
    return f"robustness card: {verdict}" if verdict else "no robustness card"


def markdown_table(columns: Sequence[Column], items: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with a line for every item."""
    shown = [column for column in columns if column.kind != STRIP]
    rule = ["--:" if column.kind == NUMBER else ":--" for column in shown]
    lines = [
        [column.title for column in shown],
        rule,
        *([column.cell(item).line for column in shown] for item in items),
    ]
    return "\n".join("| " + " | ".join(escaped(cell) for cell in line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Escape what would end a table cell or start HTML in a Markdown viewer."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
