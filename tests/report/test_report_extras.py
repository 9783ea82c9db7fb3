"""Steps, roll-backs, links, hashes and the descriptions in MLflow:
what the report says beside its leaderboard.
"""

from dataclasses import replace
from typing import Any

import pytest
from test_report import board_of, evaluated, page, seeds_of

from sat_ray.attacks.spec import AttackSpec
from sat_ray.data.split import Split
from sat_ray.evaluation.card.settings import radii
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.integrations.mlflow.metrics import compared_params, group_metrics
from sat_ray.models import Normalized
from sat_ray.report.figures.card import card_figure
from sat_ray.report.figures.curves import alpha_response, several_alphas, training_curves
from sat_ray.report.figures.seed_curves import seed_curves
from sat_ray.report.figures.steps import accuracy_after
from sat_ray.report.pages.mlflow_notes import card_note, configuration_note, sweep_note
from sat_ray.report.pages.origin import CPUINFO, code_version, origin
from sat_ray.storage.uris import LOCAL_PAGES, pages_of
from sat_ray.sweep.recipes.digits import digits, study
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.threat import ThreatModel

EVENT = {
    "epoch": 1,
    "step": 7,
    "robust_accuracy": 0.02,
    "best_robust_accuracy": 0.5,
    "back_to_epoch": 0,
    "back_to_step": 9,
    "attack_steps": 2,
    "attack_step_size": 8 / 255,
}
HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 2.0 - epoch,
        "val/clean_accuracy": 0.9,
        "val/robust_accuracy": 0.2 * epoch,
    }
    for epoch in range(3)
]


def test_accuracy_after_k_steps_is_what_an_attack_of_k_steps_leaves(
    digits_model: Normalized, held_out: Split, digits_threat_model: ThreatModel
) -> None:
    def outcomes(steps: int) -> Any:
        attack = AttackSpec(
            threat_model=digits_threat_model, steps=steps, step_size=40 / 255, name="pgd"
        )
        return evaluate(
            digits_model, held_out.images, held_out.labels, held_out.image_ids, attacks=[attack]
        )

    curve = accuracy_after(outcomes(12), steps=12)
    for steps in (1, 3, 12):
        assert curve[steps] == pytest.approx(len(robust_image_ids(outcomes(steps))) / len(held_out))
    assert len(set(curve.tolist())) > 2 and all(curve[:-1] >= curve[1:])


def test_every_roll_back_is_a_cross_where_it_happened() -> None:
    figure = seed_curves("silu", {0: HISTORY, 1: HISTORY}, events={0: [], 1: [EVENT]})
    crosses = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "X"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in crosses] == [([2], [2.0])]
    assert any("(1 in all)" in text.get_text() for text in figure.texts)
    whole = training_curves([replace(evaluated("silu"), history=tuple(HISTORY), events=(EVENT,))])
    assert [line.get_marker() for axes in whole.axes for line in axes.lines].count("X") >= 1
    assert any("roll-backs" in text.get_text() for text in whole.texts)


def test_the_page_shows_roll_backs_links_hashes_and_class_names() -> None:
    board = board_of([replace(evaluated("silu"), mlflow_run_id="ab12" * 8)])
    (row,) = board["rows"]
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + (100).to_bytes(4) * 2
    text = page(
        board,
        figures={"training_curves": png},
        events=[EVENT | {"configuration": "silu", "seed": 3}],
        config={"training": {"guard_every": 5}},
        hashes={"dataset": "d" * 64},
        digests={row["checkpoint"]: "e" * 64},
        class_names=[f"class {label}" for label in range(10)],
        pages="http://mlflow:5000",
    )
    assert "PGD-2, steps of 8/255" in text and "2, 7" in text and "1, 9" in text
    assert f'href="http://mlflow:5000/#/runs/{"ab12" * 8}"' in text
    assert "d" * 64 in text and "e" * 16 in text and "e" * 17 not in text and "class 9" in text
    assert "found no collapse" in page(
        board, figures={"training_curves": png}, config={"training": {"guard_every": 5}}
    )
    assert "guard was off" in page(board, figures={"training_curves": png})
    assert 'href="javascript' not in page(board, pages="javascript:alert(1)")
    # `make ui` alone would serve another folder where the storage is not ./runs
    local = page(board, pages=LOCAL_PAGES)
    assert "while its server runs there" in local and "make ui" not in local
    assert "while its server runs there" not in text


def test_the_page_says_of_every_difference_whether_it_is_real() -> None:
    board = board_of(
        seeds_of("relu", [400, 405, 398])
        + seeds_of("silu", [440, 446, 439])
        + seeds_of("gelu", [300, 405, 500])
    )
    text = page(board)
    section = text[text.index("Is the difference real?</h2>") : text.index("Table 1: where")]
    rows = {
        name: section[section.index(f'data-label="configuration">{name}<') :].partition("</tr>")[0]
        for name in ("silu", "gelu")
    }
    assert "yes" in rows["silu"] and "within noise" in rows["gelu"]


def test_addresses_of_pages_hold_no_login() -> None:
    assert pages_of("http://user:secret@mlflow:5000/?a=1") == "http://mlflow:5000"
    assert pages_of("https://host/mlflow/") == "https://host/mlflow"
    assert (
        pages_of("sqlite:////somewhere/mlflow.db")
        == pages_of("postgresql+psycopg://u:p@h/d")
        == "http://127.0.0.1:5000"
    )


def test_descriptions_fit_into_the_tracker_and_say_what_to_do() -> None:
    board = board_of(
        seeds_of("parametric_softplus", [400, 410, 390], alpha=10.0)
        + seeds_of("relu", [400, 405, 398])
    )
    board["groups"] = sorted(
        board["groups"] * 50, key=lambda group: group["configuration"], reverse=True
    )
    note = sweep_note(
        board, command="python pipelines/sweep.py digits", figures={"clean": "get-artifact?x"}
    )
    shown = sum(line.startswith(("| relu", "| parametric")) for line in note.splitlines())
    assert len(note) < 8000 and f"{100 - shown} more configurations" in note and 20 < shown < 100
    assert note.startswith(f"### {board['headline']['sentence']}") and note.endswith(
        "```\npython pipelines/sweep.py digits\n```"
    )
    group = next(group for group in board["groups"] if group["configuration"] == "relu")
    described = configuration_note(group, board=board)
    assert "Against relu: baseline" in described and [
        f"| {seed} |" in described for seed in range(4)
    ] == [True] * 3 + [False]
    card = {
        "verdict": "FLAG",
        "attack": "pgd-200",
        "n": 48,
        "ladder": {"clean": 0.9, "cascade": 0.2, "pgd-10": 0.4},
    }
    checks = [
        {"passed": True, "name": "a | b", "found": "fine"},
        {"passed": False, "name": "c", "found": "0 images"},
    ]
    text = card_note(card | {"checks": checks}, name="silu")
    assert (
        "clean 90.0 → pgd-10 40.0 → cascade 20.0" in text
        and "| ✓ | a \\| b | fine |" in text
        and "| FLAG | c | 0 images |" in text
    )


def test_metrics_of_a_configuration_begin_with_its_robust_accuracy_and_say_whether_it_differs() -> (
    None
):
    board = board_of(seeds_of("relu", [400, 405, 398]) + seeds_of("silu", [440, 446, 439]))
    by_name = {group["configuration"]: group_metrics(group) for group in board["groups"]}
    assert next(iter(by_name["silu"])) == "robust_accuracy"
    assert by_name["silu"]["against_relu/difference"] == pytest.approx(0.0406667, abs=1e-6)
    assert by_name["silu"]["against_relu/low"] < 0.0406667 < by_name["silu"]["against_relu/high"]
    assert by_name["silu"]["against_relu/beyond_noise"] == 1.0
    assert {
        name: by_name["relu"][f"against_relu/{name}"] for name in ("difference", "beyond_noise")
    } == {
        "difference": 0,
        "beyond_noise": 0,
    }
    (alone,) = board_of(seeds_of("silu", [440, 446, 439]))["groups"]
    assert not any(name.startswith("against_relu") for name in group_metrics(alone))


def test_activations_differ_within_the_ten_letters_that_mlflow_draws() -> None:
    everything = dict.fromkeys(digits().search.points() + study().search.points())
    shown = [
        tuple(str(value)[:10] for value in compared_params(one).values()) for one in everything
    ]
    assert len(set(shown)) == len(shown) > 13
    learned = compared_params(SearchPoint(activation="smoothrelu_learned"))
    assert learned == {
        "activation": "smoothrelu",
        "alpha": "learned",
        "curvature": "unknown",
        "attacker_activation": "smoothrelu",
        "attacker_alpha": "learned",
    }
    assert (
        compared_params(SearchPoint(activation="torch.nn.functional:softsign"))["activation"]
        == "softsign (torch.nn.functional)"
    )


AVX512 = {"device": "cpu:AVX512", "threads": 1, "torch": "2.14.1"}


def test_the_footer_says_where_when_and_with_which_code_the_results_were_computed() -> None:
    first, last = 1795910400.0, 1795996800.0  # 2026-11-29 and -30, midnight UTC
    found = origin([(AVX512, last), (AVX512, first)])
    assert found["computed"] == "2026-11-29 to 2026-11-30, cpu AVX512, 1 thread, torch 2.14.1"
    assert found["code"] == code_version() and found["code"].startswith("sat_ray ")
    if CPUINFO.exists() and "model name" in CPUINFO.read_text():
        assert found["report written"].partition(" UTC on ")[2] in CPUINFO.read_text()
    mixed = origin(
        [(AVX512, first), ({"device": "cuda:NVIDIA H200", "threads": 4, "torch": "2.14.1"}, first)]
    )
    assert (
        mixed["computed"]
        == "2026-11-29, cpu AVX512, 1 thread, torch 2.14.1; cuda NVIDIA H200, torch 2.14.1"
    )
    assert set(origin([])) == {"report written", "code"}
    text = page(board_of(seeds_of("relu", [400, 405, 398])), environment=found)
    assert (
        "computed: 2026-11-29 to 2026-11-30, cpu AVX512" in text
        and f"code: {found['code']}" in text
    )


def test_a_run_without_gpus_speaks_of_none() -> None:
    cost = {"price_per_accelerator_hour": 0.0, "currency": "EUR", "stages": [], "trials": []}
    total = {"name": "total", "accelerator_seconds": 1.0, "passes": None, "money": None}
    board = board_of(seeds_of("relu", [400, 405, 398])) | {
        "cost": cost | {"total": total | {"estimated_accelerator_seconds": None}}
    }
    for item in (*board["groups"], *board["rows"]):
        item["cost"] = {"accelerator_seconds": 1.0, "money": None}
    on_cpu = page(board, config={"resources": {"accelerator": ""}})
    assert "no GPU was used" in on_cpu and "GPUs it held" not in on_cpu
    assert "the GPUs it held" in page(board, config={"resources": {"accelerator": "H200"}})


def trial(
    activation: str, alpha: float | None, *, epochs: int = 10, value: float = 0.5
) -> dict[str, Any]:
    return {
        "activation": activation,
        "attacker_activation": activation,
        "alpha": alpha,
        "epochs": epochs,
        "val_robust_accuracy": value,
    }


def test_the_response_to_alpha_shows_activations_with_several_and_explains_only_what_is_there() -> (
    None
):
    celu = [trial("celu", 0.5), trial("celu", 2.0), trial("parametric_softplus", 10.0)]
    assert several_alphas(celu) == ["celu"]

    def said(trials: list[dict[str, Any]]) -> tuple[list[str], str]:
        figure = alpha_response(trials)
        panels = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
        return panels, " ".join(text.get_text() for text in figure.texts)

    panels, text = said(celu)
    assert (
        panels == ["celu"] and "Dashed" not in text and "faint" not in text and "Hollow" not in text
    )
    _, text = said([*celu, trial("relu", None), trial("celu", 4.0, epochs=5)])
    assert "Dashed: relu at 10 epochs" in text and "faint: trials stopped earlier" in text
    _, stopped = said([*celu, trial("relu", None, epochs=5)])
    assert "Dashed" not in stopped  # relu has no line where it was stopped earlier


def test_the_card_names_the_attack_behind_every_curve() -> None:
    curve = [[0.0, 0.9], [10.0, 0.4]]
    card = {
        "verdict": "PASS",
        "n": 48,
        "seed": 0,
        "attack": "pgd-200",
        "threat_model": {"norm": "linf", "epsilon": 8 / 255},
        "ladder": {"clean": 0.9, "cascade": 0.4},
        "curves": dict.fromkeys(("epsilon", "steps", "restarts", "loss"), curve),
    }
    axes = card_figure(card, name="silu").axes[1:5]
    assert axes[0].get_title(loc="left").startswith("Against ε (PGD-50)")
    assert all("of the claimed attack" in one.get_xlabel() for one in axes[1:])


@pytest.mark.parametrize(
    ("norm", "epsilon", "said", "ticks"),
    [
        ("linf", 1 / 255, ("ε (linf, 1/255)", "claimed 1/255"), ["0.25", "1", "4", "16", "255"]),
        ("l2", 0.5, ("ε (l2)", "claimed 0.5"), ["0.125", "0.5", "2", "8", "55.4"]),
    ],
)
def test_the_curve_against_epsilon_can_be_read_beside_a_far_larger_last_ball(
    norm: str, epsilon: float, said: tuple[str, str], ticks: list[str]
) -> None:
    threat_model = ThreatModel(norm, epsilon)
    points = [[radius, 0.5] for radius in radii(threat_model, values=3 * 32 * 32)]
    card = {
        "verdict": "PASS",
        "n": 48,
        "seed": 0,
        "attack": "pgd-200",
        "threat_model": {"norm": norm, "epsilon": epsilon},
        "ladder": {"clean": 0.9, "cascade": 0.4},
        "curves": {name: [[1.0, 0.9], [10.0, 0.4]] for name in ("steps", "restarts", "loss")}
        | {"epsilon": points},
    }
    axes = card_figure(card, name="silu").axes[1]
    assert (axes.get_xlabel(), axes.texts[0].get_text()) == said
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks


def test_checkpoints_are_listed_once_below_the_folder_that_they_share() -> None:
    models = [
        replace(one, checkpoint=f"/runs/digits/checkpoints/train/{one.seed}-ab")
        for one in seeds_of("relu", [400, 405, 398])
    ]
    text = page(board_of(models))
    assert (
        text.count("/runs/digits/checkpoints/train") == 1
        and "Below /runs/digits/checkpoints/train" in text
    )
    assert text.count("-ab</td>") == 3
