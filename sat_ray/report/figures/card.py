"""The robustness card as a picture: the ladder of attacks, and the curves that its checks read."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sat_ray.evaluation.card.settings import EPSILON_STEPS
from sat_ray.report.figures.style import FAINT, INK, head, label, new_figure, plain
from sat_ray.threat import length_text

LOG_TICKS = 3.5  # times as large as the one before is a value whose label does not touch
BAR, LINE = "#88CCEE", "#332288"


def card_figure(card: Mapping[str, Any], *, name: str) -> Figure:
    """Draw the evidence of one card: ladder, epsilon, steps, restarts and loss.

    A model without gradients has the ladder only.
    """
    curves = card["curves"]
    columns = 1 + 2 * bool(curves)
    figure = new_figure(3.4 * columns, 6.2 if curves else 3.4)
    head(
        figure,
        f"Robustness card: {card['verdict']}",
        subtitle=f"{name} · {card['n']} images, seed {card['seed']} · claimed: {card['attack']}",
    )
    panels = figure.subplots(2 if curves else 1, columns, squeeze=False).ravel()
    _ladder(panels[0], card["ladder"])
    if curves:
        _curves(list(panels[1:]), card)
    return figure


def _curves(panels: Sequence[Axes], card: Mapping[str, Any]) -> None:
    """Draw the curves that the checks of a card read; the last panel stays empty."""
    curves = card["curves"]
    _epsilon_curve(panels[0], curves["epsilon"], **card["threat_model"])
    _curve(
        panels[1],
        curves["steps"],
        x="steps of the claimed attack",
        title="Against steps: must level off",
        scale="symlog",
    )
    _curve(
        panels[2],
        curves["restarts"],
        x="restarts of the claimed attack",
        title="Against restarts: must level off",
    )
    panels[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    _curve(
        panels[3],
        curves["loss"],
        x="steps of the claimed attack",
        title="Loss: must rise",
        y="cross-entropy (nats)",
        factor=1.0,
        scale="symlog",
    )
    panels[4].axis("off")


def _ladder(axes: Axes, ladder: Mapping[str, float]) -> None:
    plain(axes, grid="x")
    # a card read back from its record has its names in alphabetical order
    names = sorted(ladder, key=lambda name: {"clean": 0, "noise": 1, "cascade": 3}.get(name, 2))[
        ::-1
    ]
    axes.barh(names, [100 * ladder[name] for name in names], color=BAR, height=0.62)
    for row, name in enumerate(names):
        axes.text(
            100 * ladder[name] + 1.5,
            row,
            f"{100 * ladder[name]:.1f}",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xlim(0, 112)
    label(axes, x="accuracy (%)", title="Ever stronger attacks")


def _epsilon_curve(
    axes: Axes, points: Sequence[Sequence[float]], *, norm: str, epsilon: float
) -> None:
    """Draw accuracy against epsilon, on a log scale: the last ball is far larger than the claim."""
    unit, unit_name = (255, ", 1/255") if norm == "linf" else (1, "")
    shown = [[round(unit * x, 6), y] for x, y in points]
    _curve(
        axes,
        shown,
        x=f"ε ({norm}{unit_name})",
        title=f"Against ε (PGD-{EPSILON_STEPS}): must fall to 0",
    )
    axes.set_xscale("log")
    ticks = _apart([x for x, _ in shown])
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    claimed = unit * epsilon
    axes.axvline(claimed, color=FAINT, linestyle="--", linewidth=1)
    axes.annotate(
        f"claimed {length_text(norm, epsilon)}",
        (claimed, 0.0),
        (-4, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",  # the curve is high there
        fontsize=8,
        color=FAINT,
    )


def _apart(values: Sequence[float]) -> list[float]:
    """Return values, ascending, whose labels do not touch on a log scale; the last is kept."""
    kept = [values[-1]]
    for value in reversed(values[:-1]):
        if LOG_TICKS * value <= kept[-1]:
            kept.append(value)
    return kept[::-1]


def _curve(
    axes: Axes,
    points: Sequence[Sequence[float]],
    *,
    x: str,
    title: str,
    y: str = "robust accuracy (%)",
    factor: float = 100.0,
    scale: str = "linear",
) -> None:
    plain(axes)
    axes.plot(
        [point[0] for point in points],
        [factor * point[1] for point in points],
        color=LINE,
        marker="o",
        markersize=4,
    )
    if scale == "symlog":
        axes.set_xscale("symlog", linthresh=1)
        last = points[-1][0]
        ticks = [
            point[0] for point in points if point[0] == last or 2.5 * point[0] <= last
        ]  # labels must not touch
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom=0)
    label(axes, x=x, y=y, title=title)
