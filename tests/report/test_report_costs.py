"""What the report says of money, of estimates, of a search cut by its budget, of bfloat16
gradients: on a board whose figures are known.
"""

import dataclasses
import re
from html import unescape
from typing import Any

import pytest
from rich.console import Console
from test_report import board_of, page, seeds_of

from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.evaluation.low_precision.calibration import Calibration, summary_of
from sat_ray.report.leaderboard.tables import to_markdown, to_terminal
from sat_ray.report.pages.mlflow_notes import sweep_note
from sat_ray.sweep.config import CostSettings
from sat_ray.sweep.config.resources import money_text
from sat_ray.sweep.cost.spent import Spent, cost_summary, with_costs
from sat_ray.sweep.recipes.digits import digits_smoke

CUT = (
    "The search was cut by its budget of 2.00 EUR at 3 of 9 trainings (2.10 EUR spent); never "
    "tried: gelu <b>."
)


def costly(*, price: float = 3.6, estimated: dict[str, float] | None = None) -> dict[str, Any]:
    """Return a board of two configurations with three seeds each:
    a row takes 1,000 s of training and 200 s of evaluation.
    """
    config = dataclasses.replace(
        digits_smoke(), cost=CostSettings(price_per_accelerator_hour=price, currency="EUR")
    )
    board = board_of([*seeds_of("relu", [400, 405, 398]), *seeds_of("silu", [410, 404, 400])])
    board["rows"] = [
        row | {"outcomes": f"o/{row['activation']}-s{row['seed']}.parquet"} for row in board["rows"]
    ]
    names = [f"{activation}-s{seed}" for activation in ("relu", "silu") for seed in range(3)]
    stages = {
        "search": [Spent(name="relu-s0", accelerator_seconds=500.0, passes=2_000_000)],
        "train": [Spent(name=name, accelerator_seconds=1000.0, passes=1) for name in names],
        "validate": [],
        "evaluate": [Spent(name=name, accelerator_seconds=200.0, passes=1) for name in names],
        "strong": [],
        "card": [Spent(name="relu-s0", accelerator_seconds=100.0)],
    }
    return with_costs(board, config, stages) | {
        "cost": cost_summary(config, stages, estimated=estimated)
    }


def table(text: str, section: str) -> list[list[str]]:
    """Return the cells of the first table of a section of the page, headings first."""
    part = text[text.index(f'<section id="{section}">') :]
    rows = re.findall(r"<tr.*?</tr>", part[: part.index("</table>")], flags=re.DOTALL)
    cells = [re.findall(r"<t[hd][ >].*?</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in cells]


def test_rows_and_configurations_show_accelerator_time_and_money() -> None:
    text = page(costly())
    head, *body = table(text, "leaderboard")
    assert head[-2:] == ["accelerator time", "EUR"]
    assert {tuple(row[-2:]) for row in body} == {
        ("60.0 min", "3.60")
    }  # 3 x 1,200 s at 3.60 an hour
    head, *body = table(text, "rows")
    assert {row[head.index("EUR")] for row in body} == {"1.20"} and len(body) == 6
    assert {row[head.index("accelerator time")] for row in body} == {"20.0 min"}


def test_stages_are_shown_estimated_beside_spent() -> None:
    expected = {
        "search": 1000.0,
        "train": 5000.0,
        "validate": 0.0,
        "evaluate": 4000.0,
        "strong": 0.0,
        "card": 0.0,
    }
    head, *body = table(page(costly(estimated=expected)), "took")
    assert head == [
        "stage",
        "accelerator-seconds",
        "estimated",
        "of the estimate",
        "passes (million)",
        "EUR",
        "EUR estimated",
    ]
    assert body[0] == ["search", "500", "1,000", "50 %", "2.00", "0.50", "1.00"]
    assert body[5] == ["card", "100", "0", "–", "not counted", "0.10", "0.00"]
    assert body[6] == ["total", "7,800", "10,000", "78 %", "not counted", "7.80", "10.00"]
    assert "| card | 100 | 0 | – | not counted | 0.10 | 0.00 |" in to_markdown(
        costly(estimated=expected)
    )
    _, *unknown = table(page(costly()), "took")
    assert {row[2] for row in unknown} == {"no estimate"} and {row[6] for row in unknown} == {"–"}


def test_without_a_price_no_money_is_mentioned() -> None:
    board = costly(price=0.0)
    assert "EUR" not in page(board) and "EUR" not in to_markdown(board)
    assert table(page(board), "took")[0][-1] == "passes (million)"
    assert "accelerator time" in to_markdown(board)


def test_a_board_that_knows_no_costs_is_shown_as_before() -> None:
    text = page(board_of(seeds_of("relu", [400, 405, 398])))
    assert (
        table(text, "leaderboard")[0][-1] == "training time"
        and 'id="took"' not in text
        and 'class="cut"' not in text
    )


def test_markdown_rows_say_what_they_cost() -> None:
    (line,) = [
        line for line in to_markdown(costly()).splitlines() if line.startswith("| silu | 1 |")
    ]
    assert [cell.strip() for cell in line.split("|")][7:9] == ["20.0 min", "1.20"]


def test_a_search_cut_by_its_budget_is_said_wherever_the_board_is_shown() -> None:
    board = costly() | {"search": {"cut_by_budget": True, "sentence": CUT}}
    text = page(board)
    assert f'<p class="cut">{CUT.replace("<", "&lt;").replace(">", "&gt;")}</p>' in text
    assert text.index('class="cut"') < text.index('id="leaderboard"')
    escaped = CUT.replace("<", "&lt;")
    assert f"**{escaped}**" in to_markdown(board) and escaped in sweep_note(board, command="c")
    console = Console(width=140, record=True)
    console.print(to_terminal(board))
    assert "cut by its budget of 2.00 EUR at 3 of 9 trainings" in console.export_text().replace(
        "\n", " "
    )
    whole = costly() | {
        "search": {"cut_by_budget": False, "sentence": "The search ran to its end."}
    }
    assert "cut by" not in page(whole) and "cut by" not in to_markdown(whole)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (1234.5, "1,234.50"), (0.1, "0.10"), (0.00401, "0.0040")],
)
def test_small_amounts_keep_two_digits_that_say_something(value: float, text: str) -> None:
    assert money_text(value) == text


def test_calibrations_of_several_models_are_one_line() -> None:
    agreeing = Calibration(
        attack="pgd-200-bf16", bound=0.1, images=64, points=5000, above=4000, missed=0,
        margin_sign=1.0, gradient_sign=0.99, verdicts=1.0,
        differing_ids=(), rescored=0.2,
    )  # fmt: skip
    worse = dataclasses.replace(
        agreeing, above=1000, missed=2, verdicts=1 - 1 / 64, differing_ids=(17,)
    )
    low, high = wilson_interval(2, 1000)
    said = summary_of([agreeing, worse])
    assert (
        "On 64 control images of each model 2 of 5,000 points above it were missed" in said
        and low < 0.002 < high
    )
    assert (
        f"(at most {100 * high:.2g} % of any model's)" in said
        and "at least 98.4 % of the verdicts" in said
        and "\n" not in said
    )
    assert summary_of([]) == ""
