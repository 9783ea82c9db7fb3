"""The tables of a board, once: their columns, and what stands in each cell. Markdown, terminal, MLflow and the page only draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sat_ray.report.formatting import (
    ABSENT,
    amount_text,
    interval,
    pgd_name,
    points,
    seconds,
    spread,
)
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.strong import FLATTERED

Item = Mapping[str, Any]
NAME, WORDS, LINES, NUMBER, STRIP = "name", "words", "lines", "number", "strip"

# (attacker's backward, optimizer's backward, activation, attacker_activation): the five rows of the paper's Table 1.
TABLE1_ROWS = (
    ("ReLU", "ReLU", "relu", "relu"),
    ("smooth", "ReLU", "relu", "relu_smooth_backward"),
    ("ReLU", "smooth", "relu_smooth_backward", "relu"),
    ("smooth", "smooth", "relu_smooth_backward", "relu_smooth_backward"),
    ("parametric softplus, forward and backward", "", "parametric_softplus", "parametric_softplus"),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Hold what one cell says. value: what it is sorted by, None last; lines: further lines like the first; notes: smaller remarks;

    link: address behind the text.
    """

    text: str
    lines: tuple[str, ...] = ()
    value: float | None = None
    notes: tuple[str, ...] = ()
    link: str = ""

    @property
    def line(self) -> str:
        """Return everything on one line, as Markdown and terminals need it."""
        return " ".join(
            [" · ".join([self.text, *self.lines]), *(f"({note})" for note in self.notes)]
        )


@dataclass(frozen=True, kw_only=True)
class Column:
    """Hold one column.

    kind: NAME, WORDS, LINES (not broken), NUMBER or STRIP (a picture, on the page alone); wide: left out where there is little room.
    """

    title: str
    cell: Callable[[Item], Cell]
    kind: str = NUMBER
    best_first: bool = False
    wide: bool = False


def narrow(columns: Sequence[Column]) -> list[Column]:
    """Return the columns for terminals and notes."""
    return [column for column in columns if not column.wide and column.kind != STRIP]


def group_columns(board: Item) -> list[Column]:
    """Return the columns of the leaderboard, one item a configuration."""
    champion = board["champion"]["configuration"]
    by_strong = board["measure"] == STRONG
    chosen_by = board["champion"]["selected_by"]
    title = "strong robust" if by_strong else "robust"

    def name(group: Item) -> Cell:
        star = " ★" if group["configuration"] == champion else ""
        return Cell(text=group["configuration"] + star)

    return [
        Column(title="configuration", kind=NAME, cell=name),
        Column(title="curvature", cell=curvature_cell),
        Column(
            title=title, best_first=True, cell=lambda group: spread_cell(group[board["measure"]])
        ),
        Column(title="", kind=STRIP, cell=lambda group: spread_cell(group[board["measure"]])),
        *(_beside_strong(board) if by_strong else []),
        Column(title="clean", cell=lambda group: spread_cell(group["clean_accuracy"])),
        Column(title="validation", wide=True, cell=lambda group: spread_cell(group[chosen_by])),
        Column(title="against relu", cell=against_relu_cell),
        *_seed_column(board),
        *cost_columns(board),
    ]


def _seed_column(board: Item) -> list[Column]:
    """Return the column of how many seeds there are, where configurations differ in it; else a line above the table says it."""
    counts = {len(group["seeds"]) for group in board["groups"]}
    seeds = Column(
        title="seeds",
        cell=lambda group: Cell(text=str(len(group["seeds"])), value=len(group["seeds"])),
    )
    return [seeds] if len(counts) > 1 else []


def _beside_strong(board: Item) -> list[Column]:
    """Return PGD's number and the gap, which stand beside the strong number."""
    return [
        Column(title=pgd_name(board), cell=lambda group: spread_cell(group["robust_accuracy"])),
        Column(title="gap", cell=gap_cell),
    ]


def row_columns(board: Item, *, pages: str = "") -> list[Column]:
    """Return the columns of the table with a line for every trained model.

    pages: address of the tracker's pages, to which the seeds link; "": no links, and the run has a column.
    """
    chosen_by = board["champion"]["selected_by"]
    by_strong = board["measure"] == STRONG
    strong = Column(
        title="strong robust", best_first=True, cell=lambda row: _accuracy_cell(row, STRONG)
    )
    pgd_title = pgd_name(board) if by_strong else "robust"
    return [
        Column(title="configuration", kind=NAME, cell=lambda row: Cell(text=row["configuration"])),
        Column(
            title="seed",
            cell=lambda row: Cell(
                text=str(row["seed"]), value=row["seed"], link=_run_page(row, pages)
            ),
        ),
        *([strong] if by_strong else []),
        Column(
            title=pgd_title,
            best_first=not by_strong,
            cell=lambda row: _accuracy_cell(row, "robust_accuracy"),
        ),
        *([Column(title="gap, share of survivors", cell=_row_gap_cell)] if by_strong else []),
        Column(title="after each attack", kind=LINES, wide=True, cell=_attacks_cell),
        Column(title="clean", cell=lambda row: _points_cell(row["clean_accuracy"])),
        Column(title="validation", cell=lambda row: _points_cell(row[chosen_by])),
        *cost_columns(board),
        *(
            []
            if pages
            else [
                Column(
                    title="MLflow run",
                    kind=WORDS,
                    cell=lambda row: Cell(text=(row["mlflow_run_id"] or ABSENT)),
                )
            ]
        ),
    ]


def difference_columns(board: Item) -> list[Column]:
    """Return the columns of the differences to relu, for the number that decides on the board."""

    def mixed(group: Item) -> Item:
        found: Item = group["difference_to_relu"]["over_seeds_and_images"]
        return found

    columns = [
        Column(
            title="configuration", kind=NAME, cell=lambda group: Cell(text=group["configuration"])
        ),
        Column(
            title="difference",
            best_first=True,
            cell=lambda group: _signed_cell(mixed(group)["mean"]),
        ),
        Column(
            title="95 % interval",
            kind=WORDS,
            cell=lambda group: Cell(text=_limits(mixed(group)["low"], mixed(group)["high"])),
        ),
        Column(
            title="by bootstrap",
            kind=WORDS,
            cell=lambda group: Cell(text=_limits(*mixed(group)["bootstrap"])),
        ),
        Column(title="p after Holm", cell=lambda group: _p_cell(mixed(group)["holm_p_value"])),
        Column(title="real?", kind=WORDS, cell=lambda group: Cell(text=reality(group))),
    ]
    if board["measure"] == STRONG:
        columns += [
            Column(
                title=f"by {pgd_name(board)} alone",
                kind=WORDS,
                cell=lambda group: against_relu_cell(group["pgd"]),
            ),
            Column(title="PGD favours it by", kind=WORDS, cell=_favour_cell),
        ]
    return [
        *columns,
        Column(
            title="sd of seeds",
            wide=True,
            cell=lambda group: _points_cell(mixed(group)["seed_deviation"]),
        ),
        Column(
            title="sd of images",
            wide=True,
            cell=lambda group: _points_cell(mixed(group)["image_deviation"]),
        ),
    ]


def compared_groups(board: Item) -> list[Item]:
    """Return the configurations with a difference to relu, largest first."""
    found = [group for group in board["groups"] if group["difference_to_relu"] is not None]
    return sorted(
        found, key=lambda group: -group["difference_to_relu"]["over_seeds_and_images"]["mean"]
    )


def table1_rows(board: Item) -> list[dict[str, Any]]:
    """Return the paper's five rows as {"attacker_backward", "optimizer_backward", "group"}; group is None where the sweep has no such row.

    Where several α fit a row, the one with the best validation accuracy stands for it.
    """
    chosen_by = board["champion"]["selected_by"]
    rows = []
    for attacker_backward, optimizer_backward, activation, attacker_activation in TABLE1_ROWS:
        fitting = [
            group
            for group in board["groups"]
            if (group["activation"], group["attacker_activation"])
            == (activation, attacker_activation)
        ]
        known = [group for group in fitting if group[chosen_by] is not None] or fitting
        by = chosen_by if known is not fitting else "val_robust_accuracy"
        best = min(
            known, key=lambda group: (-group[by]["mean"], group["configuration"]), default=None
        )
        rows.append(
            {
                "attacker_backward": attacker_backward,
                "optimizer_backward": optimizer_backward,
                "group": best,
            }
        )
    return rows


def table1_columns(board: Item) -> list[Column]:
    """Return the columns of the paper's Table 1, items as `table1_rows` returns them."""
    by_strong = board["measure"] == STRONG

    def of_group(title: str, cell: Callable[[Item], Cell], kind: str = NUMBER) -> Column:
        missing = Cell(text="not in this sweep" if title == "against relu" else ABSENT)
        return Column(
            title=title,
            kind=kind,
            cell=lambda row: missing if row["group"] is None else cell(row["group"]),
        )

    return [
        Column(title="attacker's backward", kind=NAME, cell=lambda row: Cell(text=_backward(row))),
        Column(
            title="optimizer's backward",
            kind=WORDS,
            cell=lambda row: Cell(text=row["optimizer_backward"]),
        ),
        of_group("clean", lambda group: spread_cell(group["clean_accuracy"])),
        *(
            [of_group("strong robust", lambda group: spread_cell(group[STRONG]))]
            if by_strong
            else []
        ),
        of_group(
            pgd_name(board) if by_strong else "robust",
            lambda group: spread_cell(group["robust_accuracy"]),
        ),
        of_group("against relu", against_relu_cell, WORDS),
    ]


def _backward(row: Item) -> str:
    group = row["group"]
    if row["optimizer_backward"] or group is None or group["alpha"] is None:
        return str(row["attacker_backward"])
    return f"{row['attacker_backward']} (α = {group['alpha']:.4g})"


def cost_columns(board: Item) -> list[Column]:
    """Return what a row or configuration cost: training and evaluation where that is known, money where there is a price."""
    cost = board.get("cost")
    if cost is None:
        return [
            Column(
                title="training time", cell=lambda item: seconds_cell(item["accelerator_seconds"])
            )
        ]
    time = Column(
        title="accelerator time",
        cell=lambda item: seconds_cell(item["cost"]["accelerator_seconds"]),
    )
    return (
        [time, Column(title=cost["currency"], cell=_money_cell)]
        if cost["price_per_accelerator_hour"]
        else [time]
    )


def training_columns() -> list[Column]:
    """Return the columns of what training and evaluating every configuration took."""

    def each(group: Item) -> Cell:
        return seconds_cell(group["accelerator_seconds"] / len(group["seeds"]))

    return [
        Column(
            title="configuration", kind=NAME, cell=lambda group: Cell(text=group["configuration"])
        ),
        Column(
            title="training time",
            best_first=True,
            cell=lambda group: seconds_cell(group["accelerator_seconds"]),
        ),
        Column(title="per seed", cell=each),
        Column(
            title="training images/s",
            cell=lambda group: _count_cell(group["train_images_per_second"]["mean"], "{:,.0f}"),
        ),
        Column(
            title="PGD passes/image",
            cell=lambda group: _count_cell(group["passes_per_image"]["mean"], "{:,.1f}"),
        ),
    ]


def class_columns(board: Item, class_names: Sequence[str]) -> list[Column]:
    """Return the columns of the champion's accuracies class by class."""
    by_strong = board["champion"]["row"][STRONG] is not None

    def name(one: Item) -> Cell:
        return Cell(
            text=str(class_names[one["label"]] if class_names else one["label"]), value=one["label"]
        )

    return [
        Column(title="class", kind=WORDS, cell=name),
        Column(title="images", cell=lambda one: Cell(text=f"{one['n']:,}", value=one["n"])),
        Column(title="clean", cell=lambda one: _points_cell(one["clean_accuracy"])),
        *(
            [Column(title="strong robust", cell=lambda one: _points_cell(one[STRONG]))]
            if by_strong
            else []
        ),
        Column(
            title=pgd_name(board) if by_strong else "robust",
            cell=lambda one: _points_cell(one["robust_accuracy"]),
        ),
    ]


def spread_cell(value: Mapping[str, float | None] | None) -> Cell:
    """Return mean ± standard deviation in points; a dash where there is no figure."""
    return Cell(text=ABSENT) if value is None else Cell(text=spread(value), value=value["mean"])


def against_relu_cell(found: Item) -> Cell:
    """Return what a difference to relu amounts to. found: a group, or its `pgd`."""
    verdict, difference = str(found["verdict"]), found["difference_to_relu"]
    notes = (
        ("not after Holm",) if verdict.endswith("points") and not found["holm_significant"] else ()
    )
    value = None if difference is None else difference["over_seeds_and_images"]["mean"]
    return Cell(text=verdict.removesuffix(" points"), value=value, notes=notes)


def gap_cell(group: Item) -> Cell:
    """Return the gap between both numbers, with its mark where PGD flatters the row."""
    cell = spread_cell(group["gap"])
    return Cell(text=cell.text, value=cell.value, notes=tuple(filter(None, [flattery(group)])))


def flattery(group: Item) -> str:
    """Say whether, and for how many of its seeds, PGD flatters a configuration."""
    marked, seeds = len(group["flattered_seeds"]), len(group["seeds"])
    if not marked:
        return ""
    return FLATTERED if marked == seeds else f"{FLATTERED}: {marked} of {seeds} seeds"


def curvature_cell(item: Item) -> Cell:
    """Return the curvature; the infinite one of a kink sorts above all others."""
    infinite = item["curvature"] is None and item["curvature_text"] != ABSENT
    return Cell(text=item["curvature_text"], value=1e300 if infinite else item["curvature"])


def seconds_cell(value: float) -> Cell:
    """Return a duration."""
    return Cell(text=seconds(value), value=value)


def reality(group: Item) -> str:
    """Say in two words whether a difference to relu is real."""
    found = group["difference_to_relu"]["over_seeds_and_images"]
    if group["holm_significant"]:
        return "yes"
    bootstrap = found["bootstrap"]
    inside = found["low"] <= 0 <= found["high"] or bootstrap[0] <= 0 <= bootstrap[1]
    return "within noise" if inside else "not after Holm"


def _accuracy_cell(row: Item, measure: str) -> Cell:
    if row[measure] is None:
        return Cell(text=ABSENT)
    return Cell(
        text=points(row[measure]), value=row[measure], notes=(interval(row[f"{measure}_interval"]),)
    )


def _row_gap_cell(row: Item) -> Cell:
    if row["gap"] is None:
        return Cell(text=ABSENT)
    notes = [
        f"{interval(row['gap_share_interval'])} %",
        *([FLATTERED] if row["pgd_flatters"] else []),
    ]
    return Cell(
        text=f"{points(row['gap'])}, {points(row['gap_share'])} %",
        value=row["gap_share"],
        notes=tuple(notes),
    )


def _attacks_cell(row: Item) -> Cell:
    """Return the robust accuracy under each attack; those that count their last point only say so."""
    found = {**row["attacks"], **row["strong_attacks"]}
    first, *others = [f"{name} {points(value)}" for name, value in found.items()]
    last = [
        f"{name} {points(value)}, last point only"
        for name, value in row["final_iterate_attacks"].items()
    ]
    return Cell(text=first, lines=tuple(others), notes=tuple(last))


def _run_page(row: Item, pages: str) -> str:
    return f"{pages}/#/runs/{row['mlflow_run_id']}" if pages and row["mlflow_run_id"] else ""


def _favour_cell(group: Item) -> Cell:
    """Return how much more PGD favours a configuration than it favours relu, and its interval."""
    found = group["gap_difference_to_relu"]
    return Cell(
        text=points(found["mean"], signed=True),
        value=found["mean"],
        notes=(_limits(found["low"], found["high"]),),
    )


def _p_cell(value: float) -> Cell:
    return Cell(text=f"{value:.3f}" if value >= 0.001 else "< 0.001", value=value)


def _limits(low: float, high: float) -> str:
    return f"{points(low, signed=True)} to {points(high, signed=True)}"


def _points_cell(value: float | None) -> Cell:
    return Cell(text=ABSENT) if value is None else Cell(text=points(value), value=value)


def _signed_cell(value: float) -> Cell:
    return Cell(text=points(value, signed=True), value=value)


def _money_cell(item: Item) -> Cell:
    return Cell(text=amount_text(item["cost"]["money"]), value=item["cost"]["money"])


def _count_cell(value: float, form: str) -> Cell:
    return Cell(text=form.format(value), value=value)
