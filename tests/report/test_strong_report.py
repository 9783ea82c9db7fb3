"""The strong verdict in the report: it decides, PGD's number stands beside it,
and a gap that is too wide is marked.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_report import board_of, counted, evaluated, group_named, outcomes, page

from sat_ray.integrations.mlflow.metrics import group_metrics
from sat_ray.report.figures import leaderboard as figures
from sat_ray.report.figures.curvature import curvature_figures, families, search_lines
from sat_ray.report.leaderboard.board import choose_champion
from sat_ray.report.leaderboard.curvature import curvature_json
from sat_ray.report.leaderboard.headline import headline_line
from sat_ray.report.leaderboard.rows import EvaluatedModel
from sat_ray.report.leaderboard.strong import LARGEST_SHARE, Gap, strong_verdict
from sat_ray.report.leaderboard.summary import survival
from sat_ray.report.leaderboard.tables import to_markdown, to_terminal
from sat_ray.report.pages.mlflow_notes import configuration_note, sweep_note
from sat_ray.report.pages.model_card import model_card

N = 1000


def judged(
    activation: str, *, seed: int, pgd: int, strong: int, val: float | None = None, **other: Any
) -> EvaluatedModel:
    """Build a model with that many survivors of PGD, and of the strong attacks, among N images."""
    model = evaluated(activation, seed=seed, table=counted(n=N, clean=950, robust=pgd), **other)
    attacked = outcomes([(i, True, "apgd-ce-50", 0, i < strong) for i in range(pgd)])
    chosen_by = strong / N if val is None else val
    place = f"checkpoints/{activation}-s{seed}"
    return replace(
        model, strong_table=attacked, val_strong_robust_accuracy=chosen_by, checkpoint=place
    )


def configuration(
    activation: str, pgd: Sequence[int], strong: Sequence[int], **other: Any
) -> list[EvaluatedModel]:
    return [
        judged(activation, seed=seed, pgd=count, strong=left, **other)
        for seed, (count, left) in enumerate(zip(pgd, strong, strict=True))
    ]


def masked_and_honest() -> list[EvaluatedModel]:
    """Plant a sharp activation that PGD ranks first, and whose gradients hide,
    among honest ones.
    """
    return [
        *configuration("relu", [800, 804, 798], [785, 786, 783]),
        *configuration("silu", [821, 826, 820], [815, 819, 814]),
        *configuration("mypkg:masked", [870, 874, 869], [520, 531, 515], val=0.9),
    ]


# --- the verdict on one model


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_strong_verdict_never_exceeds_pgds_image_by_image(
    images: list[tuple[bool, bool]],
) -> None:
    under_pgd = survival(
        outcomes([(i, True, "pgd-200", 0, robust) for i, (robust, _) in enumerate(images)])
    )
    rows = [(i, True, "apgd-ce-50", 0, left) for i, (robust, left) in enumerate(images) if robust]
    table = outcomes(rows) if rows else outcomes([(0, True, "apgd-ce-50", 0, True)]).slice(0, 0)
    verdict = strong_verdict(under_pgd, table)
    assert not (verdict.robust & ~under_pgd.robust).any()
    assert verdict.robust.tolist() == [robust and left for robust, left in images]
    assert verdict.gap.broken == sum(robust and not left for robust, left in images)


def test_rows_of_images_that_pgd_broke_do_not_make_them_robust_again() -> None:
    under_pgd = survival(outcomes([(0, True, "pgd-200", 0, False), (1, True, "pgd-200", 0, True)]))
    verdict = strong_verdict(
        under_pgd, outcomes([(0, True, "apgd-ce-50", 0, True), (1, True, "apgd-ce-50", 0, True)])
    )
    assert verdict.robust.tolist() == [False, True] and verdict.gap == Gap(
        n=2, survivors=1, broken=0
    )


def test_a_cascade_leaves_what_all_its_attacks_leave() -> None:
    under_pgd = survival(outcomes([(i, True, "pgd-200", 0, True) for i in range(4)]))
    rows = [
        (0, True, "apgd-ce-50", 0, False),
        *((i, True, "apgd-ce-50", 0, True) for i in (1, 2, 3)),
    ]
    rows += [
        (1, True, "apgd-t-dlr-50", 0, True),
        (2, True, "apgd-t-dlr-50", 0, False),
        (3, True, "apgd-t-dlr-50", 0, True),
    ]
    rows += [
        (1, True, "apgd-t-dlr-50", 1, False),
        (3, True, "apgd-t-dlr-50", 1, True),
    ]  # two targets, the second for survivors
    verdict = strong_verdict(under_pgd, outcomes(rows))
    assert verdict.robust.tolist() == [False, False, False, True]
    assert verdict.attacks == {"apgd-ce-50": 0.75, "apgd-t-dlr-50": 0.25}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0, True, "apgd-ce-50", 0, True)],
            "strong_table must have rows for all 2 survivors of PGD, got none for 1",
        ),
        (
            [(i, True, "apgd-ce-50", 0, True) for i in (0, 1, 7)],
            "strong_table must have the images of table, got image_id 7",
        ),
    ],
    ids=["a survivor was not attacked", "another image"],
)
def test_strong_outcomes_that_would_inflate_accuracy_are_refused(
    rows: list[Any], message: str
) -> None:
    model = replace(evaluated(table=counted(n=3, clean=3, robust=2)), strong_table=outcomes(rows))
    with pytest.raises(ValueError, match=message):
        board_of([model])


def test_a_strong_accuracy_outside_its_range_and_a_table_of_another_kind_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"val_strong_robust_accuracy must be in \[0, 1\], got 1.5"
    ):
        replace(evaluated(), val_strong_robust_accuracy=1.5)
    with pytest.raises(
        ValueError, match="strong_table must have the outcome columns, got none for robust"
    ):
        replace(evaluated(), strong_table=counted(n=3, clean=3, robust=2).drop_columns(["robust"]))


# --- the gap


@pytest.mark.parametrize(
    ("survivors", "broken", "flattered"),
    [
        (800, 15, False),
        (800, 48, False),
        (800, 80, True),
        (550, 140, True),
        (20, 2, False),
        (20, 12, True),
        (0, 0, False),
    ],
    ids=[
        "honest",
        "6 %, perhaps chance",
        "10 %",
        "a quarter",
        "few images",
        "few, yet most of them",
        "no survivors",
    ],
)
def test_a_row_is_marked_where_more_survivors_fall_than_chance_explains(
    survivors: int, broken: int, flattered: bool
) -> None:
    gap = Gap(n=1000, survivors=survivors, broken=broken)
    assert gap.overestimated is flattered
    assert (gap.interval[0] > LARGEST_SHARE) is flattered


def test_configurations_say_which_seeds_pgd_flatters() -> None:
    board = board_of(
        [
            *configuration("relu", [800, 804, 798], [785, 786, 783]),
            *configuration("silu", [800, 810, 805], [790, 640, 650]),
        ]
    )
    assert group_named(board, "relu")["flattered_seeds"] == []
    assert group_named(board, "silu")["flattered_seeds"] == [1, 2]
    assert "PGD overestimates this row: 2 of 3 seeds" in to_markdown(board)
    by_row = {(row["activation"], row["seed"]): row["pgd_flatters"] for row in board["rows"]}
    assert [by_row["silu", seed] for seed in range(3)] == [False, True, True]


def test_the_gap_is_compared_with_that_of_relu() -> None:
    masked = group_named(board_of(masked_and_honest()), "mypkg:masked")["gap_difference_to_relu"]
    assert masked["mean"] == pytest.approx(0.349 - 0.016, abs=2e-3) and masked["low"] > 0.29
    honest = group_named(board_of(masked_and_honest()), "silu")["gap_difference_to_relu"]
    assert honest["high"] < 0  # smooth networks are easier to measure


# --- ranking, champion, claims


def test_the_strong_number_ranks_rows_and_configurations() -> None:
    board = board_of(masked_and_honest())
    assert board["measure"] == "strong_robust_accuracy"
    assert [group["configuration"] for group in board["groups"]] == ["silu", "relu", "mypkg:masked"]
    numbers = [row["strong_robust_accuracy"] for row in board["rows"]]
    assert numbers == sorted(numbers, reverse=True)
    by_pgd = max(board["groups"], key=lambda group: group["robust_accuracy"]["mean"])
    assert by_pgd["configuration"] == "mypkg:masked" and by_pgd["flattered_seeds"] == [0, 1, 2]


def test_the_board_keeps_its_contract_and_is_plain_json() -> None:
    board = board_of(masked_and_honest())
    assert json.loads(json.dumps(board, allow_nan=False)) == board
    assert board["strong_attack"] == {"name": "apgd-ce-50"}
    row = board["rows"][0]
    assert set(row) >= {
        "curvature",
        "strong_robust_accuracy",
        "strong_robust_accuracy_interval",
        "strong_outcomes",
        "gap",
        "pgd_flatters",
    }
    low, high = row["strong_robust_accuracy_interval"]
    assert low < row["strong_robust_accuracy"] <= row["robust_accuracy"] and high < 1


def test_the_champion_is_chosen_by_the_strong_number_on_validation() -> None:
    models = [
        *configuration("relu", [800, 804, 798], [785, 786, 783], val=0.78),
        *(
            replace(one, val_robust_accuracy=0.95)
            for one in configuration("mypkg:masked", [870, 874, 869], [520, 531, 515], val=0.5)
        ),
        *configuration("silu", [700, 704, 699], [690, 694, 689], val=0.79),
    ]
    champion = board_of(models)["champion"]
    assert (champion["configuration"], champion["selected_by"]) == (
        "silu",
        "val_strong_robust_accuracy",
    )
    assert champion["val_strong_robust_accuracy"] == pytest.approx(0.79)


def test_a_configuration_without_the_strong_validation_number_is_no_candidate() -> None:
    rows = [
        {
            "configuration": "a",
            "seed": 0,
            "val_robust_accuracy": 0.9,
            "val_strong_robust_accuracy": None,
        },
        {
            "configuration": "a",
            "seed": 1,
            "val_robust_accuracy": 0.9,
            "val_strong_robust_accuracy": 0.9,
        },
        {
            "configuration": "b",
            "seed": 0,
            "val_robust_accuracy": 0.5,
            "val_strong_robust_accuracy": 0.4,
        },
    ]
    assert choose_champion(rows)["configuration"] == "b"
    assert choose_champion(rows[:2])["selected_by"] == "val_robust_accuracy"


def test_the_headline_claims_by_the_strong_number_and_names_pgds_beside_it() -> None:
    board = board_of(masked_and_honest()[:6])
    headline = board["headline"]
    assert headline["sentence"].startswith("silu beats relu by 3.1 ± ")
    assert headline["sentence"].endswith("points of strong robust accuracy over 3 seeds")
    assert (
        "Under PGD-200 alone, the paper's measure, it is +2.2 points (beyond noise)."
        in headline["detail"]
    )
    assert headline["difference"] == pytest.approx(
        board["groups"][0]["difference_to_relu"]["over_seeds_and_images"]["mean"]
    )


def test_what_pgd_alone_sees_is_not_claimed() -> None:
    models = [
        *configuration("relu", [800, 804, 798], [700, 706, 697]),
        *configuration("silu", [840, 846, 839], [702, 698, 704]),
    ]
    board = board_of(models)
    silu = group_named(board, "silu")
    assert silu["pgd"]["holm_significant"] and not silu["holm_significant"]
    assert "No activation differs from relu beyond noise" in board["headline"]["sentence"]


def test_the_terminal_gets_the_headline_and_a_warning_about_a_flattered_champion() -> None:
    honest, masked = board_of(masked_and_honest()[:6]), board_of(masked_and_honest())
    assert headline_line(honest) == honest["headline"]["sentence"] + "."
    assert masked["champion"]["configuration"] == "mypkg:masked"  # planted by its validation number
    assert "PGD overestimates the champion: quote its strong number, 52.0 %" in headline_line(
        masked
    )


# --- rows without a strong number


def some_without() -> dict[str, Any]:
    elu = [
        evaluated("elu", seed=seed, table=counted(n=N, clean=950, robust=900 + seed))
        for seed in range(3)
    ]
    return board_of([*masked_and_honest()[:6], *elu])


def test_rows_without_a_strong_number_come_last_and_say_so() -> None:
    board = some_without()
    elu = group_named(board, "elu")
    assert board["groups"][-1] is elu and board["rows"][-1]["activation"] == "elu"
    assert (elu["strong_robust_accuracy"], elu["gap"], elu["verdict"]) == (
        None,
        None,
        "no strong number",
    )
    assert board["rows"][-1]["strong_robust_accuracy"] is None and elu["difference_to_relu"] is None
    assert "No strong number, therefore last and not ranked: elu." in to_markdown(board)
    assert board["champion"]["configuration"] == "silu"


def test_a_mean_over_some_seeds_is_no_strong_number() -> None:
    models = masked_and_honest()[:6]
    models[4] = replace(models[4], strong_table=None)
    silu = group_named(board_of(models), "silu")
    assert (silu["strong_robust_accuracy"], silu["verdict"]) == (None, "no strong number")


def test_without_any_strong_number_pgd_ranks_as_before() -> None:
    models = [
        replace(one, strong_table=None, val_strong_robust_accuracy=None)
        for one in masked_and_honest()
    ]
    board = board_of(models)
    assert (board["measure"], board["strong_attack"]) == ("robust_accuracy", None)
    assert board["groups"][0]["configuration"] == "mypkg:masked"
    assert "strong" not in to_markdown(board).lower() and "strong" not in page(
        board
    ).lower().replace("<strong", "")


def test_relu_without_a_strong_number_leaves_no_strong_comparison() -> None:
    models = [
        *(replace(one, strong_table=None) for one in masked_and_honest()[:3]),
        *masked_and_honest()[3:6],
    ]
    board = board_of(models)
    assert group_named(board, "silu")["verdict"] == "relu has no strong number"
    assert "no difference is claimed" in board["headline"]["sentence"]


# --- one figure to quote, wherever it stands


def test_tile_leaderboard_notes_and_model_card_quote_the_strong_number() -> None:
    board = board_of(masked_and_honest()[:6])
    row = board["champion"]["row"]
    assert (row["strong_robust_accuracy"], row["robust_accuracy"]) == (0.819, 0.826)
    assert "<span>strong robust accuracy</span><b>81.9 %</b>" in page(
        board
    ) and "PGD-200 alone: 82.6 %" in page(board)
    card = model_card(
        name="silu",
        file="m.pt2",
        kind="pt2",
        spec={"name": "small", "num_classes": 10},
        shape=(1, 8, 8),
        about={},
        sha256="0",
        parity="0",
        board=board,
        row=row,
        card=None,
        config=None,
    )
    assert (
        "Robust accuracy 81.9 %" in card
        and "Under PGD-200 alone, the paper's measure: 82.6 %" in card
    )
    note = sweep_note(board, command="c")
    assert (
        "| strong robust | PGD-200 | gap |" in note
        and "search" in note
        and "`strong_robust_accuracy`" in note
    )
    silu = group_named(board, "silu")
    assert "strong robust 81.6 ± 0.3 % (PGD-200: 82.2 ± 0.3 %)" in configuration_note(
        silu, board=board
    )
    metrics = group_metrics(silu)
    assert next(iter(metrics)) == "strong_robust_accuracy" and metrics["curvature"] == 0.5
    console = Console(file=io.StringIO(), width=140)
    console.print(to_terminal(board))
    assert "81.6 ± 0.3" in console.file.getvalue()  # type: ignore[attr-defined]


def test_every_class_has_both_numbers() -> None:
    board = board_of(masked_and_honest()[:6])
    classes = board["champion"]["per_class"]
    assert sum(one["n"] * one["strong_robust_accuracy"] for one in classes) == pytest.approx(819)
    assert sum(one["n"] * one["robust_accuracy"] for one in classes) == pytest.approx(826)


def test_the_page_warns_of_a_flattered_champion() -> None:
    assert (
        "PGD overestimates this row: 40.2 % of the images that survive PGD-200 are broken"
        in page(board_of(masked_and_honest()))
    )
    assert '<p class="cut">' not in page(board_of(masked_and_honest()[:6]))


def test_the_board_says_what_it_could_see() -> None:
    board = board_of(masked_and_honest())
    assert board["power"]["comparisons"] == 2 and board["power"]["seeds"] == 3
    assert (
        0
        < board["power"]["smallest_difference_with_10_seeds"]
        < board["power"]["smallest_difference"]
    )
    for text in (to_markdown(board), page(board), sweep_note(board, command="c")):
        assert "This sweep can detect differences to relu of" in text and "80 % power" in text
    assert board_of(masked_and_honest()[:1])["power"] is None
    board["power"]["smallest_difference"] = 1.2  # no two accuracies differ by that much
    assert "This sweep has too few seeds (3) to detect any difference to relu" in to_markdown(board)


# --- curvature


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.inf, {"curvature": None, "curvature_text": "∞"}),
        (math.nan, {"curvature": None, "curvature_text": "–"}),
        (2.5, {"curvature": 2.5, "curvature_text": "2.5"}),
    ],
)
def test_infinite_and_unknown_curvature_differ_where_people_read(
    value: float, found: dict[str, Any]
) -> None:
    assert curvature_json(value) == found


def several() -> dict[str, Any]:
    softplus = [
        one
        for alpha, left in ((2.0, 700), (20.0, 790))
        for one in configuration(
            "parametric_softplus",
            [left + 10, left + 14, left + 8],
            [left, left + 5, left - 2],
            alpha=alpha,
        )
    ]
    return board_of([*masked_and_honest(), *softplus])


def test_a_family_with_several_alphas_is_a_line_and_relu_its_limit() -> None:
    board = several()
    assert {name: len(groups) for name, groups in families(board, board["measure"]).items()} == {
        "parametric_softplus": 2,
        "silu": 1,
    }
    drawn = curvature_figures(board)
    assert set(drawn) == {"robust_against_curvature", "gap_against_curvature"}
    axes = drawn["robust_against_curvature"].axes[0]
    lines = [line for line in axes.lines if list(line.get_xdata()) == [0.5, 5.0]]
    assert len(lines) == 1 and lines[0].get_ydata()[0] == pytest.approx(70.1)
    relu = [
        line
        for line in axes.lines
        if line.get_linestyle() == "--" and len(set(line.get_ydata())) == 1
    ]
    assert [line.get_ydata()[0] for line in relu] == [pytest.approx(100 * 2354 / 3000)]
    for figure in drawn.values():
        assert figures.png(figure).startswith(b"\x89PNG")


def test_without_a_strong_number_there_is_no_gap_to_draw_and_without_a_curvature_no_figure() -> (
    None
):
    models = [
        replace(one, strong_table=None, val_strong_robust_accuracy=None)
        for one in masked_and_honest()
    ]
    assert set(curvature_figures(board_of(models))) == {"robust_against_curvature"}
    assert curvature_figures(board_of(models[:3])) == {}


def test_with_one_alpha_a_family_the_search_trials_have_a_panel_of_their_own() -> None:
    common = {"activation": "celu", "attacker_activation": "celu"}
    trials = [
        {**common, "alpha": a, "val_robust_accuracy": v, "epochs": 4}
        for a, v in ((0.5, 0.6), (1.0, 0.7), (4.0, 0.5))
    ]
    trials += [{**common, "alpha": 8.0, "val_robust_accuracy": 0.9, "epochs": 2}]
    trials += [
        {
            "activation": "silu",
            "attacker_activation": "silu",
            "alpha": None,
            "val_robust_accuracy": 0.7,
            "epochs": 4,
        }
    ]
    assert search_lines(trials) == {"celu": [(0.25, 50.0), (1.0, 70.0), (2.0, 60.0)]}
    figure = curvature_figures(board_of(masked_and_honest()), trials)["robust_against_curvature"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Finalists, test images",
        "Search trials, validation images",
    ]
    assert len(curvature_figures(several(), trials)["robust_against_curvature"].axes) == 1


def test_marks_at_one_curvature_do_not_hide_each_other() -> None:
    axes = curvature_figures(several())["robust_against_curvature"].axes[0]
    marks = [
        float(x)
        for line in axes.lines
        if line.get_marker() in ("s", "^")
        for x in np.atleast_1d(line.get_xdata())
    ]
    assert len(marks) == len(set(marks)) == 3
