"""The board as tables: the paper's Table 1, Markdown, and a table for the terminal. All read the board alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from sat_ray.report.text import (
    ABSENT,
    MINUS,
    amount_text,
    cut_text,
    interval,
    points,
    seconds,
    seeds_text,
    setting_text,
    spread,
    verdict_text,
)

# (attacker's backward, optimizer's backward, activation, attacker_activation): the five rows of the paper's Table 1.
TABLE1_ROWS = (
    ("ReLU", "ReLU", "relu", "relu"),
    ("smooth", "ReLU", "relu", "relu_smooth_backward"),
    ("ReLU", "smooth", "relu_smooth_backward", "relu"),
    ("smooth", "smooth", "relu_smooth_backward", "relu_smooth_backward"),
    ("parametric softplus, forward and backward", "", "parametric_softplus", "parametric_softplus"),
)
NOTES = (
    "Accuracies are in points, over all images. Robust: correct at every visited point of every attack; clean errors count as broken.",
    "Per configuration: mean ± standard deviation over seeds. Against relu: difference paired by seed and image ± half the 95 % "
    "interval over seeds and images.",
    "Effect size: Hedges' g, the difference in units of its standard deviation over seeds. Differences that do not survive Holm's "
    "correction over all configurations say so. Rows per seed: 95 % Wilson interval over images.",
    "The champion (★) is chosen by mean robust accuracy on the validation split, never by the test split, among models whose robustness "
    "card says PASS, if any does.",
)


def table1_rows(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the paper's five rows as {"attacker_backward", "optimizer_backward", "group"}; group is None where the sweep has no such row.

    Where several α fit a row, the one with the best validation accuracy stands for it.
    """
    rows = []
    for attacker_backward, optimizer_backward, activation, attacker_activation in TABLE1_ROWS:
        fitting = [
            group for group in board["groups"] if (group["activation"], group["attacker_activation"]) == (activation, attacker_activation)
        ]
        best = min(fitting, key=lambda group: (-group["val_robust_accuracy"]["mean"], group["configuration"]), default=None)
        rows.append({"attacker_backward": attacker_backward, "optimizer_backward": optimizer_backward, "group": best})
    return rows


def to_markdown(board: Mapping[str, Any]) -> str:
    """Return the board as Markdown: headline, configurations, Table 1, rows per seed, notes."""
    headline = board["headline"]
    parts = [
        f"# {_cell(board['sweep'])}",
        f"**{_cell(headline['sentence'])}.** {_cell(headline['detail'])}",
        f"{_cell(setting_text(board))} · {seeds_text(board)} · {card_text(board)}",
        *([f"**{_cell(cut_text(board))}**"] if cut_text(board) else []),
        "## Configurations",
        _markdown_table(
            ["", "configuration", "robust", "clean", "robust on validation", "against relu", "seeds", "training time"],
            [_group_cells(group, board=board) for group in board["groups"]],
            numeric=range(2, 5),
        ),
        *_differences(board),
        "## Table 1: where the gradient is improved",
        _markdown_table(
            ["attacker's backward", "optimizer's backward", "clean", "robust"],
            [_table1_cells(row) for row in table1_rows(board)],
            numeric=(2, 3),
        ),
        "## Rows",
        _rows(board),
        "\n".join(f"- {note}" for note in NOTES),
    ]
    return "\n\n".join(parts) + "\n"


def _differences(board: Mapping[str, Any]) -> list[str]:
    """Return the section on differences to relu: what they are, how sure, and whether seeds or images blur them; nothing without any."""
    compared = [group for group in board["groups"] if group["difference_to_relu"] is not None]
    header = ["configuration", "difference", "95 % interval", "by bootstrap", "effect size", "p after Holm", "sd of seeds", "sd of images"]
    table = _markdown_table(header, [_difference_cells(group) for group in compared], numeric=range(1, len(header)))
    return ["## Against relu: over seeds and images", table] if compared else []


def _difference_cells(group: Mapping[str, Any]) -> list[str]:
    over_seeds, mixed = (group["difference_to_relu"][name] for name in ("robust_accuracy", "over_seeds_and_images"))
    effect = over_seeds["effect_size"]
    return [
        group["configuration"],
        points(mixed["mean"], signed=True),
        interval((mixed["low"], mixed["high"])),
        interval(mixed["bootstrap"]),
        ABSENT if effect is None else f"{effect:+.1f}".replace("-", MINUS),
        f"{mixed['holm_p_value']:.3f}" if mixed["holm_p_value"] >= 0.001 else "< 0.001",
        points(mixed["seed_deviation"]),
        points(mixed["image_deviation"]),
    ]


def to_terminal(board: Mapping[str, Any]) -> Table:
    """Return one line per configuration as a rich table; names are shown literally, markup in them included."""
    table = Table(title=Text(board["sweep"]), title_justify="left")
    caption = [f"{setting_text(board)} · {seeds_text(board)}", f"★ by validation, {card_text(board)}", cut_text(board)]
    table.caption = Text("\n".join(filter(None, caption)))
    table.add_column("", width=1)
    table.add_column("configuration", overflow="fold")
    for name in ("robust", "clean", "validation"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("against relu")
    table.add_column("seeds", justify="right")
    table.add_column("training", justify="right", no_wrap=True)
    for group in board["groups"]:
        cells = _group_cells(group, board=board)
        table.add_row(*(Text(cell) for cell in cells), style="bold" if cells[0] else None)
    return table


def card_text(board: Mapping[str, Any]) -> str:
    """Say what the champion's robustness card says."""
    verdict = board["champion"].get("robustness_card")
    return f"robustness card: {verdict}" if verdict else "no robustness card"


def _group_cells(group: Mapping[str, Any], *, board: Mapping[str, Any]) -> list[str]:
    return [
        "★" if group["configuration"] == board["champion"]["configuration"] else "",
        group["configuration"],
        spread(group["robust_accuracy"]),
        spread(group["clean_accuracy"]),
        spread(group["val_robust_accuracy"]),
        verdict_text(group),
        str(len(group["seeds"])),
        seconds(group["accelerator_seconds"]),
    ]


def _table1_cells(row: Mapping[str, Any]) -> list[str]:
    group = row["group"]
    figures = ["not in this sweep", ABSENT] if group is None else [spread(group["clean_accuracy"]), spread(group["robust_accuracy"])]
    return [row["attacker_backward"], row["optimizer_backward"], *figures]


def _rows(board: Mapping[str, Any]) -> str:
    header = ["configuration", "seed", "robust", "95 % interval", "clean", "robust on validation", *_cost_header(board), "MLflow run"]
    return _markdown_table(header, [_row_cells(row, board=board) for row in board["rows"]], numeric=range(1, len(header) - 1))


def _row_cells(row: Mapping[str, Any], *, board: Mapping[str, Any]) -> list[str]:
    return [
        row["configuration"],
        str(row["seed"]),
        points(row["robust_accuracy"]),
        interval(row["robust_accuracy_interval"]),
        points(row["clean_accuracy"]),
        points(row["val_robust_accuracy"]),
        *_cost_cells(row, board=board),
        row["mlflow_run_id"] or ABSENT,
    ]


def _cost_header(board: Mapping[str, Any]) -> list[str]:
    """Name the columns of what a row cost: accelerator-seconds of training and evaluation, and money where there is a price."""
    cost = board.get("cost")
    return [] if cost is None else ["accelerator-seconds", *([cost["currency"]] if cost["price_per_accelerator_hour"] else [])]


def _cost_cells(row: Mapping[str, Any], *, board: Mapping[str, Any]) -> list[str]:
    cells = [f"{row['cost']['accelerator_seconds']:,.0f}", amount_text(row["cost"]["money"])] if "cost" in board else []
    return cells[: len(_cost_header(board))]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int]) -> str:
    rule = ["--:" if index in numeric else ":--" for index in range(len(header))]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in (header, rule, *rows))


def _cell(text: str) -> str:
    """Escape what would end a table cell or start HTML in a Markdown viewer."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
