"""The columns of the leaderboard: configurations, trained models, differences to relu, classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sat_ray.report.formatting import (
    ABSENT,
    interval,
    limits,
    p_text,
    pgd_name,
    points,
    seconds,
    signed_points,
    spread,
)
from sat_ray.report.leaderboard.groups import PGD, STRONG
from sat_ray.report.leaderboard.strong import OVERESTIMATED
from sat_ray.report.table import LINES, NAME, STRIP, WORDS, Cell, Column, Item
from sat_ray.sweep.config.resources import money_text

CONFIGURATION = Column("configuration", "configuration", kind=NAME)


def group_columns(board: Item) -> list[Column]:
    """Return the columns of the leaderboard, one item a configuration."""
    champion = board["champion"]["configuration"]
    measure = board["measure"]
    title = "strong robust" if measure == STRONG else "robust"

    def name(group: Item) -> str:
        star = " ★" if group["configuration"] == champion else ""
        return f"{group['configuration']}{star}"

    seeds = Column("seeds", lambda group: len(group["seeds"]))
    numbers_differ = len({len(group["seeds"]) for group in board["groups"]}) > 1
    return [
        Column("configuration", name, kind=NAME),
        Column("curvature", curvature_cell),
        Column(title, measure, spread, best_first=True),
        Column("", measure, spread, kind=STRIP),
        *([Column(pgd_name(board), PGD, spread), GAP] if measure == STRONG else []),
        Column("clean", "clean_accuracy", spread),
        *_corruptions(board["groups"], spread),
        Column("validation", board["champion"]["selected_by"], spread, wide=True),
        Column("against relu", against_relu_cell),
        *([seeds] if numbers_differ else []),
        *_cost(board),
    ]


def row_columns(board: Item, *, pages: str = "") -> list[Column]:
    """Return the columns of the table with a line for every trained model.

    pages: address of the tracker's pages, to which the seeds link; "": no links, and the run
    has a column.
    """
    by_strong = board["measure"] == STRONG
    pgd = pgd_name(board) if by_strong else "robust"
    run = Column("MLflow run", lambda row: row["mlflow_run_id"] or None, kind=WORDS, wide=True)
    return [
        CONFIGURATION,
        Column("seed", lambda row: _seed_cell(row, pages)),
        *([_accuracy("strong robust", STRONG, best_first=True)] if by_strong else []),
        _accuracy(pgd, PGD, best_first=not by_strong),
        *([Column("gap, share of survivors", _row_gap_cell)] if by_strong else []),
        Column("after each attack", _attacks_cell, kind=LINES, wide=True),
        Column("clean", "clean_accuracy", points),
        *_corruptions(board["rows"], points),
        Column("validation", board["champion"]["selected_by"], points),
        *_cost(board),
        *([] if pages else [run]),
    ]


def _cost(board: Item) -> list[Column]:
    """Return the cost of a row or configuration: training alone where the board has no costs.

    Money is shown where there is a price.
    """
    cost = board.get("cost")
    if cost is None:
        return [Column("training time", "accelerator_seconds", seconds)]
    spent = Column("accelerator time", lambda item: item["cost"]["accelerator_seconds"], seconds)
    money = Column(cost["currency"], lambda item: item["cost"]["money"], money_text)
    return [spent, money] if priced(cost) else [spent]


def priced(cost: Item) -> bool:
    """Say whether an accelerator-hour has a price."""
    return bool(cost["price_per_accelerator_hour"])


def _corruptions(items: Sequence[Item], show: Callable[[Any], str]) -> list[Column]:
    """Return the column of the accuracy under common corruptions; [] unless all have it."""
    name = "corruption_accuracy"
    return [Column("corruptions", name, show)] if all(name in item for item in items) else []


def difference_columns(board: Item) -> list[Column]:
    """Return the columns of the differences to relu, for the number that decides."""
    pgd_alone = [
        Column(
            f"by {pgd_name(board)} alone",
            lambda group: against_relu_cell(group["pgd"]),
            kind=WORDS,
        ),
        Column("PGD favours it by", _favour_cell, kind=WORDS),
    ]
    return [
        CONFIGURATION,
        Column("difference", _difference("mean"), signed_points, best_first=True),
        Column("95 % interval", _difference("low", "high"), limits, kind=WORDS),
        Column("by bootstrap", _difference("bootstrap"), limits, kind=WORDS),
        Column("p after Holm", _difference("holm_p_value"), p_text),
        Column("real?", reality, kind=WORDS),
        *(pgd_alone if board["measure"] == STRONG else []),
        Column("sd of seeds", _difference("seed_deviation"), points, wide=True),
        Column("sd of images", _difference("image_deviation"), points, wide=True),
    ]


def compared_groups(board: Item) -> list[Item]:
    """Return the configurations with a difference to relu, largest first."""
    found = [group for group in board["groups"] if group["difference_to_relu"] is not None]
    return sorted(found, key=_difference("mean"), reverse=True)


def training_columns() -> list[Column]:
    """Return the columns of the compute that every configuration needed."""

    def per_seed(group: Item) -> float:
        return float(group["accelerator_seconds"] / len(group["seeds"]))

    return [
        CONFIGURATION,
        Column("training time", "accelerator_seconds", seconds, best_first=True),
        Column("per seed", per_seed, seconds),
        Column("training images/s", "train_images_per_second", _mean("{:,.0f}")),
        Column("PGD passes/image", "passes_per_image", _mean("{:,.1f}")),
    ]


def class_columns(board: Item, class_names: Sequence[str]) -> list[Column]:
    """Return the columns of the champion's accuracies class by class."""
    by_strong = board["champion"]["row"][STRONG] is not None

    def name(one: Item) -> str:
        return str(class_names[one["label"]] if class_names else one["label"])

    return [
        Column("class", name, kind=WORDS),
        Column("images", "n", "{:,}".format),
        Column("clean", "clean_accuracy", points),
        *([Column("strong robust", STRONG, points)] if by_strong else []),
        Column(pgd_name(board) if by_strong else "robust", PGD, points),
    ]


def against_relu_cell(found: Item) -> Cell:
    """Return the difference to relu, or why there is none. found: a group, or its `pgd`."""
    verdict = str(found["verdict"])
    difference = found["difference_to_relu"]
    uncorrected = verdict.endswith("points") and not found["holm_significant"]
    return Cell(
        text=verdict.removesuffix(" points"),
        value=None if difference is None else difference["over_seeds_and_images"]["mean"],
        notes=("not after Holm",) if uncorrected else (),
    )


def curvature_cell(item: Item) -> Cell:
    """Return the curvature; the infinite one of a kink sorts above all others."""
    infinite = item["curvature"] is None and item["curvature_text"] != ABSENT
    return Cell(text=item["curvature_text"], value=1e300 if infinite else item["curvature"])


def reality(group: Item) -> str:
    """Say in at most three words whether a difference to relu is real."""
    if group["holm_significant"]:
        return "yes"
    found = group["difference_to_relu"]["over_seeds_and_images"]
    low, high = found["bootstrap"]
    inside = found["low"] <= 0 <= found["high"] or low <= 0 <= high
    return "within noise" if inside else "not after Holm"


def _difference(*names: str) -> Callable[[Item], Any]:
    """Return a function from a group to one field of its difference to relu, or to several."""

    def value(group: Item) -> Any:
        found = group["difference_to_relu"]["over_seeds_and_images"]
        return found[names[0]] if len(names) == 1 else [found[name] for name in names]

    return value


def _mean(form: str) -> Callable[[Mapping[str, float]], str]:
    return lambda value: form.format(value["mean"])


def _gap_cell(group: Item) -> Cell | None:
    """Return the gap between both numbers, with a remark where PGD overestimates the row."""
    if group["gap"] is None:
        return None
    marked = len(group["flattered_seeds"])
    seeds = len(group["seeds"])
    remark = OVERESTIMATED if marked == seeds else f"{OVERESTIMATED}: {marked} of {seeds} seeds"
    return Cell(
        text=spread(group["gap"]),
        value=group["gap"]["mean"],
        notes=(remark,) if marked else (),
    )


GAP = Column("gap", _gap_cell)


def _accuracy(title: str, measure: str, *, best_first: bool) -> Column:
    def cell(row: Item) -> Cell | None:
        if row[measure] is None:
            return None
        notes = (interval(row[f"{measure}_interval"]),)
        return Cell(text=points(row[measure]), value=row[measure], notes=notes)

    return Column(title, cell, best_first=best_first)


def _row_gap_cell(row: Item) -> Cell | None:
    if row["gap"] is None:
        return None
    share = f"{interval(row['gap_share_interval'])} %"
    return Cell(
        text=f"{points(row['gap'])}, {points(row['gap_share'])} %",
        value=row["gap_share"],
        notes=(share, OVERESTIMATED) if row["pgd_flatters"] else (share,),
    )


def _attacks_cell(row: Item) -> Cell:
    """Return the robust accuracy under each attack; final-iterate attacks are marked."""
    found = {**row["attacks"], **row["strong_attacks"]}
    first, *others = [f"{name} {points(value)}" for name, value in found.items()]
    last = [f"{name} {points(value)}" for name, value in row["final_iterate_attacks"].items()]
    notes = tuple(f"{one}, last point only" for one in last)
    return Cell(text=first, lines=tuple(others), notes=notes)


def _seed_cell(row: Item, pages: str) -> Cell:
    run = row["mlflow_run_id"]
    link = f"{pages}/#/runs/{run}" if pages and run else ""
    return Cell(text=str(row["seed"]), value=row["seed"], link=link)


def _favour_cell(group: Item) -> Cell:
    """Return how much more PGD favours a configuration than it favours relu."""
    found = group["gap_difference_to_relu"]
    notes = (limits((found["low"], found["high"])),)
    return Cell(text=signed_points(found["mean"]), value=found["mean"], notes=notes)
