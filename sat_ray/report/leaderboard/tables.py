"""The leaderboard as Markdown, as LaTeX and as a table for the terminal, with its notes."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table as TerminalTable

from sat_ray.report.cost_tables import cost_markdown
from sat_ray.report.formatting import cut_text, pgd_name, points, seeds_text, setting_text
from sat_ray.report.latex import HEAD, latex_table
from sat_ray.report.leaderboard.columns import (
    compared_groups,
    difference_columns,
    group_columns,
    row_columns,
)
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.strong import LARGEST_SHARE, OVERESTIMATED
from sat_ray.report.leaderboard.table1 import table1_columns, table1_rows
from sat_ray.report.table import Table, escaped, markdown_table, terminal_table


def notes_of(board: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know about the figures of a leaderboard."""
    by_strong = board["measure"] == STRONG
    chosen_by = board["champion"]["selected_by"]
    chosen = "strong robust" if chosen_by == "val_strong_robust_accuracy" else "robust"
    return [
        "Accuracies are in points, over all images. Robust: correct at every visited point of "
        "every attack; clean errors count as broken.",
        *(_strong_notes(board) if by_strong else []),
        "Per configuration: mean ± standard deviation over seeds. Against relu: difference "
        "paired by seed and image ± half the 95 % interval over seeds and images.",
        "Differences that do not survive Holm's correction over all configurations are marked "
        "“not after Holm”. Rows per seed: 95 % Wilson interval over images.",
        "Curvature: the largest absolute second derivative of the activation; infinite (∞) for "
        "relu.",
        f"The champion (★) is chosen by mean {chosen} accuracy on the validation split, never by "
        "the test split. Where any robustness card says PASS, only models with PASS are "
        "candidates.",
    ]


def _strong_notes(board: Mapping[str, Any]) -> list[str]:
    name = pgd_name(board)
    without = [group["configuration"] for group in board["groups"] if group[STRONG] is None]
    last = f"No strong number, therefore last and not ranked: {', '.join(without)}."
    return [
        f"Strong robust: correct under {name}, the paper's measure, and under "
        f"{board['strong_attack']['name']} on the same images. Order, champion and claims are "
        "decided by this number.",
        f"Gap: images that survive {name} and are broken by the strong attacks, in points. A "
        "wide gap means that gradients mislead PGD and its number overestimates robustness. "
        f"“{OVERESTIMATED}”: more than {100 * LARGEST_SHARE:g} % of PGD's survivors are broken "
        "(lower end of the 95 % interval).",
        *([last] if without else []),
    ]


def power_text(board: Mapping[str, Any]) -> str:
    """Say which difference to relu the sweep can detect; "" where it compared nothing."""
    power = board.get("power")
    if power is None:
        return ""
    smallest = power["smallest_difference"]
    planned = power["smallest_difference_with_10_seeds"]
    share = f"{100 * power['power']:.0f} % power"
    seeds = power["seeds"]
    more = ""
    if planned is not None and planned < 1:
        more = f" With 10 seeds it could detect {points(planned)}."
    if smallest >= 1:
        return (
            f"This sweep has too few seeds ({seeds}) to detect any difference to relu with "
            f"{share}.{more}"
        )
    others = power["comparisons"]
    corrected = "" if others == 1 else f", corrected for {others} comparisons"
    return (
        f"This sweep can detect differences to relu of {points(smallest)} points and more "
        f"({share}, {seeds} seeds, {power['n']:,} images{corrected}); smaller ones may exist "
        f"undetected.{more}"
    )


def to_markdown(board: Mapping[str, Any]) -> str:
    """Return the leaderboard as Markdown: headline, tables, notes, cost."""
    headline = board["headline"]
    cut = escaped(cut_text(board))
    parts = [
        f"# {escaped(board['sweep'])}",
        f"**{escaped(headline['sentence'])}.** {escaped(headline['detail'])}",
        f"{escaped(setting_text(board))} · {seeds_text(board)} · {card_text(board)}",
        f"**{cut}**" if cut else "",
        "## Configurations",
        markdown_table(Table(group_columns(board), board["groups"])),
        escaped(power_text(board)),
    ]
    if compared := compared_groups(board):
        parts += [
            "## Against relu: over seeds and images",
            markdown_table(Table(difference_columns(board), compared)),
        ]
    parts += [
        "## Table 1: where the gradient is improved",
        markdown_table(Table(table1_columns(board), table1_rows(board))),
        "## Rows",
        markdown_table(Table(row_columns(board), board["rows"])),
        "\n".join(f"- {escaped(note)}" for note in notes_of(board)),
    ]
    if "cost" in board:
        parts.append(cost_markdown(board["cost"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def to_latex(board: Mapping[str, Any]) -> str:
    """Return the leaderboard as LaTeX tables: configurations, differences to relu, models.

    The first has means ± standard deviations over seeds, the others 95 % intervals.
    """
    about = f"{setting_text(board)}, {seeds_text(board)}"
    tables = {
        "configurations": Table(
            group_columns(board),
            board["groups"],
            title=f"Robust accuracy by activation ({about})",
            caption="Mean ± standard deviation over seeds, in points; against relu: ± half the "
            "95 % interval over seeds and images. ★: chosen on validation images.",
        ),
        "differences": Table(
            difference_columns(board),
            compared_groups(board),
            title=f"Differences to relu ({about})",
            caption="In points, paired by seed and image.",
        ),
        "models": Table(
            row_columns(board),
            board["rows"],
            title=f"Trained models ({about})",
            caption="In points, with the 95 % Wilson interval over images.",
        ),
    }
    shown = [
        latex_table(table, label=f"tab:{board['sweep']}:{name}")
        for name, table in tables.items()
        if table.items
    ]
    return "\n\n".join([HEAD, *shown]) + "\n"


def to_terminal(board: Mapping[str, Any]) -> TerminalTable:
    """Return the leaderboard for the terminal, one line per configuration."""
    caption = [
        f"{setting_text(board)} · {seeds_text(board)}",
        f"★ by validation, {card_text(board)}",
        cut_text(board),
        power_text(board),
    ]
    table = Table(
        group_columns(board),
        board["groups"],
        title=board["sweep"],
        caption="\n".join(filter(None, caption)),
        marked=lambda group: group["configuration"] == board["champion"]["configuration"],
    )
    return terminal_table(table)


def card_text(board: Mapping[str, Any]) -> str:
    """Say what the champion's robustness card says."""
    verdict = board["champion"].get("robustness_card")
    return f"robustness card: {verdict}" if verdict else "no robustness card"
