"""Training curves of one configuration, a line per seed, with the guard's roll-backs."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sat_ray.report.figures.style import FAINT, head, label, new_figure, plain

Event = Mapping[str, float]
# Paul Tol's "bright" scheme; the line style says the same again.
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
_STYLES = ("-", "--", ":", "-.")
_PANELS = (
    ("train/loss", "Training loss", "loss (nats)", 1.0),
    ("val/clean_accuracy", "Clean accuracy, validation", "accuracy (%)", 100.0),
    ("val/robust_accuracy", "Robust accuracy, validation", "accuracy (%)", 100.0),
)


def seed_curves(
    name: str,
    histories: Mapping[int, Sequence[Mapping[str, float]]],
    *,
    events: Mapping[int, Sequence[Event]],
) -> Figure:
    """Draw loss and validation accuracies against the epochs done, one line per seed.

    histories: seed → one dict per epoch, as `EvaluatedModel.history`; events: seed → roll-backs,
    as `EvaluatedModel.events`.
    """
    figure = new_figure(9.6, 3.5)
    count = sum(len(one) for one in events.values())
    note = "No roll-backs by the guard."
    if count:
        note = f"✕: the guard detected a collapse and rolled back ({count} in all)."
    head(figure, name, subtitle="training, one line per seed", note=note)
    for axes, (key, title, unit, scale) in zip(figure.subplots(1, 3), _PANELS, strict=True):
        plain(axes)
        label(axes, x="epochs done", y=unit, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for number, seed in enumerate(sorted(histories)):
            rows = [row for row in histories[seed] if key in row]
            axes.plot(
                [row["epoch"] + 1 for row in rows],
                [scale * row[key] for row in rows],
                **_style(number),
                marker="o",
                markersize=3,
            )
        if key == "val/robust_accuracy":
            mark_roll_backs(axes, [event for seed in sorted(events) for event in events[seed]])
    legend = [
        Line2D([], [], label=f"seed {seed}", **_style(number))
        for number, seed in enumerate(sorted(histories))
    ]
    figure.legend(handles=legend, loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def mark_roll_backs(axes: Axes, events: Sequence[Event]) -> None:
    """Draw a cross where the guard rolled back, at the robust accuracy that it measured."""
    for event in events:
        axes.plot(
            event["epoch"] + 1,
            100 * event["robust_accuracy"],
            marker="X",
            markersize=8,
            color="#BB1111",
            markeredgecolor="white",
            zorder=5,
        )
    if events:
        axes.annotate(
            "✕ roll-back",
            (1, 0),
            xycoords="axes fraction",
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=FAINT,
        )


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _STYLES[number % len(_STYLES)],
        "linewidth": 1.5,
    }
