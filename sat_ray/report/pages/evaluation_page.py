"""The page of an evaluation of one model: accuracies by attack and by step, and its card."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sat_ray.report.evaluation_summary import attack_table
from sat_ray.report.figures.card import card_figure
from sat_ray.report.figures.leaderboard import png
from sat_ray.report.figures.steps import count_steps, survivors_after
from sat_ray.report.figures.style import head, label, new_figure, plain
from sat_ray.report.formatting import threat_text
from sat_ray.report.pages.parts import image, templates

SHOWN = ("model", "data", "threat_model", "attacks", "cascade", "seed", "environment")
LINES = ("-", "--", ":", "-.")


def render_evaluation(
    found: Mapping[str, Any],
    table: pa.Table,
    *,
    claim: str,
    command: str,
    card: Mapping[str, Any] | None = None,
) -> str:
    """Render one HTML page without external requests.

    found: the contents of evaluation.json; table: outcomes of all images; claim: the result in one
    sentence; command: what reproduces it.
    """
    template = templates().get_template("evaluation.html.j2")
    steps = {
        "title": "Accuracy against steps",
        "caption": "Read from the outcomes: the step at which each image broke first.",
    }
    drawn = {"title": "Robustness card", "caption": "The evidence behind the verdict."}
    return template.render(
        found=found,
        attacks=attack_table(found),
        claim=claim,
        command=command,
        card=card,
        steps_figure=steps | image("steps", png(steps_figure(found, table))),
        card_figure=None
        if card is None
        else drawn | image("card", png(card_figure(card, name=found["name"]))),
        details=json.dumps(
            {name: found[name] for name in SHOWN}, indent=2, sort_keys=True, ensure_ascii=False
        ),
    )


def curves(found: Mapping[str, Any], table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Return (steps + 1,) accuracies of every attack if it had stopped after 0, 1, … steps.

    The curves of a cascade begin where the attack before ended. table: outcomes, columns image_id,
    attack and first_broken_step.
    """
    drawn = {}
    for spec in found["attacks"]:
        rows = table.filter(pc.equal(table["attack"], spec["name"]))
        drawn[spec["name"]] = survivors_after(rows, steps=spec["steps"])[0] / found["n"]
    return drawn


def steps_figure(found: Mapping[str, Any], table: pa.Table) -> Figure:
    """Draw the accuracy that every attack leaves against its steps, on a logarithmic axis."""
    figure = new_figure(9.6, 4.2)
    head(
        figure,
        "Accuracy against steps",
        subtitle=f"{found['name']} · {threat_text(found)} · n = {found['n']:,} images, "
        f"seed {found['seed']}",
        note="0 steps: the start of the attack. A curve that still falls at its end needs more "
        "steps.",
    )
    axes = plain(figure.add_subplot())
    for number, (name, values) in enumerate(curves(found, table).items()):
        axes.plot(
            range(len(values)),
            100 * values,
            label=f"{name}: {100 * values[-1]:.1f} %",
            linestyle=LINES[number % len(LINES)],
        )
    longest = max(spec["steps"] for spec in found["attacks"])
    axes.axhline(
        100 * found["clean_accuracy"],
        color="#888888",
        linewidth=1,
        label=f"clean: {100 * found['clean_accuracy']:.1f} %",
    )
    count_steps(axes, longest)
    axes.set_xlim(0, longest)
    axes.set_ylim(0, 102)
    label(axes, x="steps, or queries of square (log scale)", y="accuracy (%)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return figure
