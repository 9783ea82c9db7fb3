"""Robust accuracy against the attack's steps, for every configuration, from the outcomes alone.

An outcome holds the step at which its image broke first, so the accuracy under an attack that stops
after k steps is a count:

    A(k) = share of the images that are classified correctly and that no row broke at a step <= k
    A(steps) = robust accuracy
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sat_ray.attacks.spec import FINAL_SUFFIX
from sat_ray.evaluation.first_broken_step import NEVER
from sat_ray.report.figures.style import head, label, mark, new_figure, plain, two_lines
from sat_ray.report.leaderboard.rows import EvaluatedModel, display_names


def accuracy_after(table: pa.Table, *, steps: int) -> NDArray[np.float64]:
    """Return (steps + 1,) accuracies after 0, 1, …, `steps` steps of every attack and restart.

    table: outcomes. Step 0 is the start of the attack, random or not. Attacks that count their
    last point only are left out.
    """
    counted = np.array([not name.endswith(FINAL_SUFFIX) for name in table["attack"].to_pylist()])
    left, images = survivors_after(table.filter(counted), steps=steps)
    return left / images


def survivors_after(table: pa.Table, *, steps: int) -> tuple[NDArray[np.int64], int]:
    """Return the numbers of unbroken images after 0, 1, …, `steps` steps, and of all images."""
    images, position = np.unique(table["image_id"].to_numpy(), return_inverse=True)
    # A clean error broke before step 0.
    broken = table["first_broken_step"].to_numpy().astype(np.int64)
    first = np.full(len(images), steps + 1)
    np.minimum.at(first, position, np.where(broken == NEVER, steps + 1, broken))
    fallen = np.searchsorted(np.sort(first), np.arange(steps + 1), side="right")
    return len(images) - fallen, len(images)


def accuracy_against_steps(
    models: Sequence[EvaluatedModel], *, steps: int, subtitle: str
) -> Figure:
    """Draw the accuracy after k steps, the mean over seeds of every configuration.

    The legend is sorted by the accuracy at the end, best first; k is on a logarithmic axis.
    """
    curves: dict[str, list[NDArray[np.float64]]] = {}
    looks: dict[str, EvaluatedModel] = {}
    for name, model in zip(display_names(models), models, strict=True):
        curves.setdefault(name, []).append(100 * accuracy_after(model.table, steps=steps))
        looks[name] = model
    means = {name: np.mean(every, axis=0) for name, every in curves.items()}
    order = sorted(means, key=lambda name: (-means[name][-1], name))
    figure = new_figure(9.6, 4.6)
    head(
        figure,
        "Robust accuracy against steps",
        subtitle=subtitle,
        note="Mean over seeds, test split. 0 steps: the start of the attack. A curve that still "
        "falls at the end needs more steps.",
    )
    axes = plain(figure.add_subplot())
    handles = []
    for name in reversed(order):
        model = looks[name]
        style = mark(model.activation, attacker_activation=model.attacker_activation, size=5)
        style |= {
            "linewidth": 1.5,
            "linestyle": "-" if model.attacker_activation == model.activation else "--",
        }
        axes.plot(range(steps + 1), means[name], markevery=_marked(steps), **style)
        handles.append(Line2D([], [], label=f"{means[name][-1]:.1f}   {two_lines(name)}", **style))
    count_steps(axes, steps)
    axes.set_ylim(bottom=0)
    label(axes, x="steps (log scale)", y="robust accuracy (%)")
    figure.legend(
        handles=handles[::-1],
        loc="outside right upper",
        frameon=False,
        fontsize=8.5,
        title=f"after {steps} steps (%)",
        alignment="left",
    )
    return figure


def count_steps(axes: Axes, steps: int) -> None:
    """Give axes a logarithmic horizontal axis from 0 to a number of steps."""
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(_marked(steps), [f"{step:,}" for step in _marked(steps)])
    axes.minorticks_off()


def _marked(steps: int) -> list[int]:
    """Return the steps that the axis names: 0, 1, 2, 5, 10, … and the last."""
    named = [factor * 10**power for power in range(len(str(steps))) for factor in (1, 2, 5)]
    return [0, *(step for step in named if step < 0.8 * steps), steps]
