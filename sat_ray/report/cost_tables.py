"""The tables of accelerator time and money: by row, by stage and by trial."""

from sat_ray.report.formatting import seconds
from sat_ray.report.leaderboard.columns import priced
from sat_ray.report.table import NAME, Column, Item, Table, markdown_table
from sat_ray.sweep.config.resources import money_text
from sat_ray.sweep.cost.spent import ESTIMATES


def stage_table(cost: Item) -> Table:
    """Return the table of the stages and their sum, estimated beside spent."""
    currency = cost["currency"]
    money = [
        Column(currency, "money", money_text),
        Column(f"{currency} estimated", "estimated_money", money_text),
    ]
    columns = [
        Column("stage", "name", kind=NAME),
        Column("accelerator-seconds", "accelerator_seconds", "{:,.0f}".format),
        Column(
            "estimated", "estimated_accelerator_seconds", "{:,.0f}".format, missing="no estimate"
        ),
        Column("of the estimate", _share_of_estimate, "{:,.0f} %".format),
        PASSES,
        *(money if priced(cost) else []),
    ]
    return Table(columns, [*cost["stages"], cost["total"]], sums=[len(cost["stages"])])


def trial_table(cost: Item) -> Table:
    """Return the table of the trials of the search."""
    money = Column(cost["currency"], "money", money_text)
    columns = [
        Column("trial", "name", kind=NAME),
        Column("accelerator time", "accelerator_seconds", seconds),
        *([money] if priced(cost) else []),
        PASSES,
    ]
    return Table(columns, cost["trials"])


def cost_markdown(cost: Item) -> str:
    """Return the section of leaderboard.md on compute and cost."""
    return f"## Compute and cost by stage\n\n{markdown_table(stage_table(cost))}\n\n{ESTIMATES}"


def _share_of_estimate(stage: Item) -> float | None:
    estimated = stage["estimated_accelerator_seconds"]
    return 100 * stage["accelerator_seconds"] / estimated if estimated else None


def _millions(passes: int) -> str:
    return f"{passes / 1e6:.2f}"


PASSES = Column("passes (million)", "passes", _millions, missing="not counted")
