"""The report layer on synthetic outcomes whose answers are known."""

import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.report.figures import leaderboard as figures
from sat_ray.report.figures.curves import alpha_response, training_curves
from sat_ray.report.figures.examples import adversarial_examples
from sat_ray.report.leaderboard.board import choose_champion, leaderboard
from sat_ray.report.leaderboard.holm import holm
from sat_ray.report.leaderboard.rows import EvaluatedModel
from sat_ray.report.leaderboard.summary import summarise
from sat_ray.report.leaderboard.tables import to_markdown, to_terminal
from sat_ray.report.pages.sweep_page import render
from sat_ray.sweep.search.search_space import configuration_name

Row = tuple[int, bool, str, int, bool]  # image_id, clean prediction right, attack, restart, robust
PNG = b"\x89PNG\r\n\x1a\n"


def outcomes(rows: Sequence[Row], *, passes: int = 10) -> pa.Table:
    """Build a table of outcomes; the label of image i is i modulo 10."""
    ids, clean, attacks, restarts, robust = (list(column) for column in zip(*rows, strict=True))
    labels = [image_id % 10 for image_id in ids]
    wrong = [(label + 1) % 10 for label in labels]
    count = len(rows)
    return pa.table(
        {
            "image_id": pa.array(ids, pa.int64()),
            "label": pa.array(labels, pa.int32()),
            "clean_prediction": pa.array(
                [a if ok else b for a, b, ok in zip(labels, wrong, clean, strict=True)], pa.int32()
            ),
            "clean_margin": pa.array([1.0] * count, pa.float32()),
            "attack": pa.array(attacks, pa.string()),
            "restart": pa.array(restarts, pa.int32()),
            "adversarial_prediction": pa.array(
                [a if ok else b for a, b, ok in zip(labels, wrong, robust, strict=True)], pa.int32()
            ),
            "adversarial_margin": pa.array([1.0] * count, pa.float32()),
            "first_broken_step": pa.array([-1 if ok else -2 for ok in robust], pa.int32()),
            "passes": pa.array([passes] * count, pa.int32()),
            "distance": pa.array([0.1] * count, pa.float32()),
            "robust": pa.array(robust, pa.bool_()),
        }
    )


def counted(*, n: int, clean: int, robust: int) -> pa.Table:
    """Build outcomes of one attack with that many clean and robust images of n."""
    return outcomes([(i, i < clean, "pgd-200", 0, i < robust) for i in range(n)])


def evaluated(
    activation: str = "silu",
    *,
    seed: int = 0,
    val: float = 0.5,
    table: pa.Table | None = None,
    **other: Any,
) -> EvaluatedModel:
    given_fields = {
        "alpha": None,
        "attacker_activation": activation,
        "attacker_alpha": other.get("alpha"),
        "model": "small",
    } | other
    history = tuple(
        {
            "epoch": float(epoch),
            "train/loss": 2.0 / epoch,
            "train/adversarial_accuracy": 0.1 * epoch,
        }
        | (
            {"val/clean_accuracy": 0.2 * epoch, "val/robust_accuracy": 0.1 * epoch}
            if epoch % 2 == 0
            else {}
        )
        for epoch in range(1, 5)
    )
    return EvaluatedModel(
        activation=activation,
        seed=seed,
        val_robust_accuracy=val,
        checkpoint="checkpoints/x",
        outcomes="outcomes/x.parquet",
        mlflow_run_id=None,
        accelerator_seconds=2.0,
        train_images_per_second=100.0,
        history=history,
        table=counted(n=200, clean=180, robust=100) if table is None else table,
        **given_fields,
    )


def board_of(models: Sequence[EvaluatedModel], *, sweep: str = "a sweep") -> dict[str, Any]:
    return leaderboard(
        models,
        sweep=sweep,
        dataset="digits",
        threat_model={"norm": "linf", "epsilon": 64 / 255},
        attack={"name": "pgd-200", "steps": 200, "step_size": 4 / 255, "restarts": 1},
    )


def seeds_of(
    activation: str, robust: Sequence[int], *, n: int = 1000, **other: Any
) -> list[EvaluatedModel]:
    return [
        evaluated(activation, seed=seed, table=counted(n=n, clean=950, robust=k), **other)
        for seed, k in enumerate(robust)
    ]


def group_named(board: dict[str, Any], name: str) -> dict[str, Any]:
    return next(group for group in board["groups"] if group["configuration"] == name)


SIX = [
    (0, True, "pgd-200", 0, True), (0, True, "pgd-200", 1, True), (0, True, "square", 0, True),
    (0, True, "pgd-200-final", 0, True),
    (1, True, "pgd-200", 0, True), (1, True, "pgd-200", 1, False), (1, True, "square", 0, True),
    (1, True, "pgd-200-final", 0, True),
    (2, True, "pgd-200", 0, True), (2, True, "pgd-200", 1, True), (2, True, "square", 0, False),
    (2, True, "pgd-200-final", 0, True),
    (3, False, "pgd-200", 0, False), (3, False, "square", 0, False),
    (3, False, "pgd-200-final", 0, False),
    (4, True, "pgd-200", 0, True), (4, True, "pgd-200", 1, True), (4, True, "square", 0, True),
    (4, True, "pgd-200-final", 0, False),
]  # fmt: skip


def test_robust_accuracy_is_the_pointwise_and_over_attacks_and_restarts() -> None:
    summary = summarise(outcomes(SIX))
    assert (summary.n, summary.clean_errors) == (5, 1)
    assert summary.clean_accuracy == 4 / 5
    assert summary.attacks == {"pgd-200": 3 / 5, "square": 3 / 5}
    assert summary.robust_accuracy == 2 / 5  # below both: different attacks broke different images
    assert summary.robust_accuracy_interval == wilson_interval(2, 5)
    assert summary.passes_per_image == len(SIX) * 10 / 5


def test_final_iterate_attacks_are_reported_apart_and_never_lower_robust_accuracy() -> None:
    summary = summarise(outcomes(SIX))
    assert summary.final_iterate_attacks == {"pgd-200-final": 3 / 5}
    assert "pgd-200-final" not in summary.attacks
    with pytest.raises(ValueError, match="at least 1 that counts every visited point"):
        summarise(outcomes([row for row in SIX if row[2] == "pgd-200-final"]))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.randoms(),
)
def test_summary_does_not_depend_on_the_order_of_rows(
    images: list[tuple[bool, bool, bool]], random: Any
) -> None:
    rows = [
        (i, clean, attack, 0, clean and robust)
        for i, (clean, *both) in enumerate(images)
        for attack, robust in zip("ab", both, strict=True)
    ]
    shuffled = list(rows)
    random.shuffle(shuffled)
    summary = summarise(outcomes(rows))
    assert summary == summarise(outcomes(shuffled))
    assert summary.robust_accuracy <= min(summary.attacks.values()) <= summary.clean_accuracy


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*SIX, SIX[0]], "image_id 0 must have each restart of attack pgd-200 once"),
        (
            [row for row in SIX if row[:3] != (4, True, "square")],
            "attack square must have an outcome .* got none for 1 of 5 images",
        ),
        (
            [row for row in SIX if row[:4] != (0, True, "pgd-200", 1)],
            "attack pgd-200 must have an outcome .* got none for 1 of 5 images",
        ),
        ([(0, False, "pgd-200", 0, True)], "robust must be false for image_id 0, a clean error"),
    ],
    ids=[
        "padding duplicate",
        "attack skipped an image",
        "unbroken image missed a restart",
        "robust clean error",
    ],
)
def test_outcomes_that_would_inflate_accuracy_are_refused(rows: list[Row], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarise(outcomes(rows))


def test_an_empty_table_and_a_missing_column_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 rows"):
        summarise(outcomes(SIX).slice(0, 0))
    with pytest.raises(
        ValueError, match="table must have the outcome columns, got none for passes"
    ):
        evaluated(table=outcomes(SIX).drop_columns(["passes"]))


def test_display_names_say_what_varies() -> None:
    def name(
        activation: str, alpha: float | None, attacker: str, attacker_alpha: float | None
    ) -> str:
        return configuration_name(
            activation, alpha=alpha, attacker_activation=attacker, attacker_alpha=attacker_alpha
        )

    assert name("silu", None, "silu", None) == "silu"
    assert (
        name("parametric_softplus", 10.0, "parametric_softplus", 10.0) == "parametric_softplus α=10"
    )
    assert (
        name("relu", None, "relu_smooth_backward", None) == "relu · attacker relu_smooth_backward"
    )


def test_board_keeps_the_contract_and_is_plain_json() -> None:
    board = board_of(
        [
            *seeds_of("relu", [500, 510, 505]),
            evaluated("silu", table=counted(n=1000, clean=900, robust=600)),
        ]
    )
    assert json.loads(json.dumps(board, allow_nan=False)) == board
    assert {"sweep", "dataset", "threat_model", "attack", "rows", "groups", "champion"} <= set(
        board
    )
    row = board["rows"][0]
    assert set(row) >= {
        "model", "activation", "alpha", "attacker_activation", "attacker_alpha", "seed",
        "val_robust_accuracy", "clean_accuracy",
        "robust_accuracy", "robust_accuracy_interval", "n", "checkpoint", "outcomes",
        "mlflow_run_id", "accelerator_seconds",
        "train_images_per_second",
    }  # fmt: skip
    assert [one["robust_accuracy"] for one in board["rows"]] == [0.6, 0.51, 0.505, 0.5]
    assert (row["activation"], row["attacker_activation"], row["alpha"], row["n"]) == (
        "silu",
        "silu",
        None,
        1000,
    )
    relu = group_named(board, "relu")
    assert relu["robust_accuracy"] == {
        "mean": pytest.approx(0.505),
        "standard_deviation": pytest.approx(0.005),
    }
    assert relu["verdict"] == "baseline"
    assert group_named(board, "silu")["robust_accuracy"]["standard_deviation"] is None


def test_champion_is_never_chosen_by_the_test_split() -> None:
    lucky = [
        evaluated("gelu", seed=s, val=0.5, table=counted(n=200, clean=199, robust=198))
        for s in range(3)
    ]
    chosen = [
        evaluated("silu", seed=s, val=v, table=counted(n=200, clean=100, robust=20 - s))
        for s, v in enumerate((0.5, 0.7, 0.6))
    ]
    champion = board_of([*lucky, *chosen])["champion"]
    assert (champion["configuration"], champion["row"]["seed"], champion["selected_by"]) == (
        "silu",
        1,
        "val_robust_accuracy",
    )
    blind = [
        {
            "configuration": m.activation,
            "seed": m.seed,
            "val_robust_accuracy": m.val_robust_accuracy,
        }
        for m in (*lucky, *chosen)
    ]
    assert choose_champion(blind)["row"]["seed"] == 1  # no figure of the test split is even present


def test_champion_ties_go_to_the_display_name() -> None:
    # 0.1 + 0.2 + 0.3 and its reverse differ in the last bit unless the mean is rounded.
    rows = [
        {"configuration": "b", "seed": s, "val_robust_accuracy": v}
        for s, v in enumerate((0.1, 0.2, 0.3))
    ]
    rows += [
        {"configuration": "a", "seed": s, "val_robust_accuracy": v}
        for s, v in enumerate((0.3, 0.2, 0.1))
    ]
    assert choose_champion(rows)["configuration"] == "a"


def test_the_champion_is_the_best_by_validation_whose_card_passes() -> None:
    rows = [
        {"configuration": name, "seed": 0, "val_robust_accuracy": value}
        for name, value in (("a", 0.3), ("b", 0.5), ("c", 0.4))
    ]

    def chosen(**verdicts: str) -> tuple[str, str | None]:
        champion = choose_champion(
            [row | {"robustness_card": verdicts.get(str(row["configuration"]))} for row in rows]
        )
        return champion["configuration"], champion["robustness_card"]

    assert chosen() == ("b", None)
    assert chosen(b="PASS", c="PASS") == ("b", "PASS")
    assert chosen(b="FLAG", c="PASS") == ("c", "PASS")
    assert chosen(b="FLAG", c="FLAG") == ("b", "FLAG")


def test_differences_to_relu_are_paired_by_seed_and_say_within_noise() -> None:
    models = [
        *seeds_of("relu", [400, 500, 600]),
        *seeds_of("silu", [451, 549, 651]),
        *seeds_of("elu", [420, 480, 601]),
    ]
    board = board_of([*models, *seeds_of("gelu", [900, 910])])
    silu = group_named(board, "silu")
    found = silu["difference_to_relu"]
    assert found["seeds"] == [0, 1, 2]
    assert found["over_seeds_and_images"]["mean"] == pytest.approx((0.051 + 0.049 + 0.051) / 3)
    assert silu["verdict"] == "+5.0 ± 0.3 points"
    assert silu["holm_significant"] is True
    assert group_named(board, "elu")["verdict"] == "within noise"
    assert group_named(board, "gelu")["verdict"] == "not enough seeds (2)"
    assert group_named(board, "gelu")["difference_to_relu"] is None


def test_without_relu_no_difference_is_claimed() -> None:
    board = board_of(seeds_of("silu", [451, 549, 651]))
    assert board["groups"][0]["difference_to_relu"] is None
    assert board["groups"][0]["verdict"] == "no relu baseline"
    assert "without a relu baseline no difference is claimed" in board["headline"]["sentence"]


def test_headline_claims_only_what_survives_seeds_images_and_correction() -> None:
    clear = board_of(
        [*seeds_of("relu", [400, 405, 398]), *seeds_of("silu", [601, 604, 600], val=0.9)]
    )["headline"]
    assert clear["sentence"].startswith("silu beats relu by 20.")
    assert clear["bootstrap_interval"][0] > 0.1
    noise = board_of(
        [*seeds_of("relu", [400, 405, 398]), *seeds_of("silu", [300, 500, 460], val=0.9)]
    )["headline"]
    assert noise["sentence"] == "No activation differs from relu beyond noise over 3 seeds"
    few = board_of([*seeds_of("relu", [400]), *seeds_of("silu", [600], val=0.9)])["headline"]
    assert "comparing activations takes 3 seeds, got 1" in few["sentence"]


def test_a_seed_that_changes_nothing_is_not_evidence() -> None:
    board = board_of(
        [*seeds_of("relu", [400, 400, 400]), *seeds_of("silu", [600, 600, 600], val=0.9)]
    )
    assert group_named(board, "silu")["verdict"] == "no spread over seeds"
    assert "beats" not in board["headline"]["sentence"]


def test_models_of_other_images_and_repeated_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds of silu must differ"):
        board_of([evaluated(), evaluated()])
    with pytest.raises(ValueError, match="all models must have the same images"):
        board_of([evaluated(), evaluated(seed=1, table=counted(n=199, clean=180, robust=100))])


def test_holm_steps_down_and_keeps_the_order_given() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def trials() -> list[dict[str, Any]]:
    common = {"activation": "celu", "attacker_activation": "celu"}
    return [
        {**common, "alpha": a, "val_robust_accuracy": 0.5 + a / 100, "epochs": e}
        for a, e in ((0.5, 2), (1.0, 4), (4.0, 4))
    ]


def all_figures() -> dict[str, Any]:
    models = [
        *seeds_of("relu", [400, 405, 398]),
        *seeds_of("own_activation", [450, 470, 460]),
        evaluated_with_other_attacker(),
    ]
    board = board_of(models)
    x = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    labels, predictions = np.array([0, 1]), np.array([1, 1])
    examples = adversarial_examples(
        x, 1 - x, labels, labels, predictions, ["cat", "dog"], "L∞, ε = 4/255"
    )
    return {
        "clean_against_robust": figures.clean_against_robust(board),
        "table1": figures.table1(board),
        "alpha_response": alpha_response(trials()),
        "training_curves": training_curves(models),
        "adversarial_examples": examples,
    }


def evaluated_with_other_attacker() -> EvaluatedModel:
    return evaluated(
        "relu",
        attacker_activation="relu_smooth_backward",
        table=counted(n=1000, clean=900, robust=420),
    )


def test_every_figure_becomes_a_png() -> None:
    for name, figure in all_figures().items():
        data = figures.png(figure)
        assert data.startswith(PNG) and len(data) > 5_000, name


def test_figures_name_their_units_and_their_error_bars() -> None:
    figure = figures.clean_against_robust(board_of(seeds_of("relu", [400, 405, 398])))
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("clean accuracy (%)", "robust accuracy (%)")
    assert any("standard deviation over seeds" in text.get_text() for text in figure.texts)


def test_perturbations_are_magnified_by_the_factor_that_is_written() -> None:
    x = np.full((1, 1, 2, 2), 0.5, dtype=np.float32)
    figure = adversarial_examples(
        x, x + 0.1, np.array([0]), np.array([0]), np.array([0]), ["zero"], ""
    )
    shown = figure.axes[2]
    assert shown.get_ylabel() == "perturbation\n× 5"
    assert np.asarray(shown.images[0].get_array()) == pytest.approx(1.0, abs=1e-5)


class Page(HTMLParser):
    """Collect tags that stay open, everything a page would load, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = (
    '<script>alert(1)</script>"><img src=https://example.org/x onerror=alert(1)> [bold]|{{ 7 * 7 }}'
)


def page(board: dict[str, Any], **changes: Any) -> str:
    """Render a page of a board and nothing else. changes: of render's other arguments."""
    settings: dict[str, Any] = {
        "figures": {},
        "command": "python pipelines/sweep.py digits",
        "versions": {},
        "notes": [],
        "config": {},
    }
    return render(board, **(settings | changes))


def hostile_page() -> tuple[str, dict[str, Any]]:
    board = board_of(
        [*seeds_of("relu", [400, 405, 398]), *seeds_of("silu", [601, 604, 600])], sweep=HOSTILE
    )
    buffer = io.BytesIO()
    figures.table1(board).savefig(buffer, format="png")
    figure = {"table1": buffer.getvalue(), HOSTILE: buffer.getvalue()}
    named = {HOSTILE: HOSTILE}
    changes = {"command": HOSTILE, "versions": named, "notes": [HOSTILE], "config": named}
    return page(board, figures=figure, **changes), board


def test_page_parses_loads_nothing_from_outside_and_escapes_hostile_names() -> None:
    text, _ = hostile_page()
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.scripts == 1
    assert parsed.loads and all(
        load.startswith(("#", "data:image/png;base64,")) for load in parsed.loads
    )
    assert "<script>alert" not in text and "onerror=alert(1)>" not in text.replace("&gt;", "")
    assert "url(" not in text and "@import" not in text


def test_page_says_the_headline_the_command_and_every_row() -> None:
    board = board_of(
        [*seeds_of("relu", [400, 405, 398]), *seeds_of("silu", [601, 604, 600], val=0.9)]
    )
    text = page(board, versions={"torch": "2.14.1"})
    for expected in (
        board["headline"]["sentence"],
        "python pipelines/sweep.py",
        "torch 2.14.1",
        "not in this sweep",
        "ε = 64/255",
        "silu ★",
    ):
        assert expected in text
    assert (
        text.count('data-label="checkpoint">x<') == len(board["rows"])
        and "Below checkpoints" in text
    )


def test_a_figure_that_is_no_png_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a PNG, got a file"):
        page(board_of([evaluated()]), figures={"table1": b"<svg>"})


def test_markdown_and_terminal_show_hostile_names_literally() -> None:
    _, board = hostile_page()
    markdown = to_markdown(board)
    assert "<script>" not in markdown and " ★ |" in markdown
    console = Console(file=io.StringIO(), width=200)
    console.print(to_terminal(board))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]" in printed and "+20." in printed


def test_corruptions_have_a_column_and_fields_where_they_were_measured_and_only_there() -> None:
    found = {"fog": [0.5, 0.25], "snow": [0.75, 0.5]}
    measured = board_of(
        [evaluated("silu", corruptions=found), evaluated("relu", corruptions=found)]
    )
    plain = board_of([evaluated("silu"), evaluated("relu")])
    row = measured["rows"][0]
    assert row["corruptions"] == found and row["corruption_accuracy"] == 0.5
    assert measured["groups"][0]["corruption_accuracy"]["mean"] == 0.5
    assert "corruptions" in to_markdown(measured) and "corruption" not in to_markdown(plain)
    assert {"corruptions", "corruption_accuracy"}.isdisjoint(plain["rows"][0])
