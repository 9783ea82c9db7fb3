"""The page of one evaluation: its curves count outcomes, and it says what evaluation.json says,
whatever names hold.
"""

import html
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sat_ray.attacks import AttackSpec, cascade
from sat_ray.data.split import Split
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized
from sat_ray.report.evaluation_summary import claim, summary
from sat_ray.report.pages.evaluation_page import curves, render_evaluation, steps_figure
from sat_ray.threat import ThreatModel

BALL = ThreatModel("linf", 40 / 255)
CASES = {
    "restarts": [AttackSpec(threat_model=BALL, steps=9, step_size=8 / 255, restarts=3)],
    "cascade": cascade(BALL, num_classes=10, steps=4, queries=12),
}
CARD: dict[str, Any] = {
    "verdict": "FLAG",
    "n": 20,
    "seed": 3,
    "attack": "pgd-20",
    "cascade": ["apgd-ce-100", "square-5000"],
    "checks": [
        {
            "name": "gradients are there",
            "passed": False,
            "found": "80 % are <zero>",
            "meaning": "a climb needs a slope",
        }
    ],
    "ladder": {"clean": 0.9, "noise": 0.9, "pgd-20": 0.8, "cascade": 0.2},
    "curves": {},
    "threat_model": {"norm": "linf", "epsilon": 40 / 255},
}


@pytest.fixture(scope="module", params=CASES)
def evaluated(
    request: pytest.FixtureRequest, digits_model: Normalized, held_out: Split
) -> tuple[dict[str, Any], pa.Table]:
    """Return evaluation.json and the outcomes of an attack with restarts, and of a cascade."""
    specs, in_turn = CASES[request.param], request.param == "cascade"
    table = evaluate(
        digits_model,
        held_out.images,
        held_out.labels,
        held_out.image_ids,
        attacks=specs,
        slots=32,
        cascade=in_turn,
    )
    found = {
        "name": "mine-<b>digits</b>",
        "model": {"uri": "module:<script>alert(1)</script>"},
        "data": {"uri": "digits.npz"},
        "threat_model": {"norm": "linf", "epsilon": 40 / 255},
        "n_split": 899,
        "seed": 3,
        "seconds": 12.5,
        "cascade": in_turn,
        "environment": {"threads": 1},
        "outcomes": "/somewhere/outcomes.parquet",
        **summary(table, specs),
    }
    return found, table


def test_the_curves_count_what_an_attack_of_k_steps_would_have_left(
    evaluated: tuple[dict[str, Any], pa.Table],
) -> None:
    found, table = evaluated
    drawn = curves(found, table)
    assert list(drawn) == [spec["name"] for spec in found["attacks"]]
    before = found["clean_accuracy"]
    for spec in found["attacks"]:
        rows = [row for row in table.to_pylist() if row["attack"] == spec["name"]]
        for k in range(spec["steps"] + 1):
            broken = {
                row["image_id"]
                for row in rows
                if row["first_broken_step"] == -2 or 0 <= row["first_broken_step"] <= k
            }
            assert (
                drawn[spec["name"]][k]
                == len({row["image_id"] for row in rows} - broken) / found["n"]
            )
        assert (
            drawn[spec["name"]][-1] == spec["robust_accuracy"] <= drawn[spec["name"]][0] <= before
        )
        assert (np.diff(drawn[spec["name"]]) <= 0).all()
        before = spec["robust_accuracy"] if found["cascade"] else before
    assert before == found["robust_accuracy"] or not found["cascade"]


@pytest.mark.parametrize("card", [None, CARD], ids=["no card", "a card"])
def test_the_page_says_what_was_found_and_loads_nothing(
    evaluated: tuple[dict[str, Any], pa.Table], card: dict[str, Any] | None
) -> None:
    found, table = evaluated
    page = render_evaluation(
        found,
        table,
        claim=claim(found),
        command="python pipelines/evaluate.py --model 'a b'",
        card=card,
    )
    text = html.unescape(page)
    assert "<script" not in page and "<b>digits" not in page and found["model"]["uri"] in text
    assert claim(found) in text and "--model 'a b'" in text
    assert all(spec["name"] in text and f"{spec['passes']:,}" in text for spec in found["attacks"])
    assert (
        not [
            part
            for part in page.split('src="')[1:]
            if not part.startswith("data:image/png;base64,")
        ]
        and "href=" not in page
    )
    assert ("gradients are there" in text and "80 % are <zero>" in text and "FLAG" in text) == (
        card is not None
    )
    assert ("Add <code>--card</code>" in page) == (card is None)
    assert page == render_evaluation(
        found,
        table,
        claim=claim(found),
        command="python pipelines/evaluate.py --model 'a b'",
        card=card,
    )


def test_the_figure_names_every_attack_with_what_it_leaves(
    evaluated: tuple[dict[str, Any], pa.Table],
) -> None:
    found, table = evaluated
    figure = steps_figure(found, table)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:-1] == [
        f"{spec['name']}: {100 * spec['robust_accuracy']:.1f} %" for spec in found["attacks"]
    ]
    assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel() == "accuracy (%)"


def test_a_warning_stands_beside_the_verdict(evaluated: tuple[dict[str, Any], pa.Table]) -> None:
    found, table = evaluated
    drawn = [
        render_evaluation(one, table, claim="c", command="c")
        for one in (found, found | {"warning": "3 of 9 <images>"})
    ]
    assert "Warning:" not in drawn[0] and "<b>Warning:</b> 3 of 9 &lt;images&gt;" in drawn[1]
