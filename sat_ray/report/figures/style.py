"""What all figures share: one mark per activation, plain axes, titles and footnotes. Object API only, no global matplotlib state."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

INK, FAINT, GRID = "#1f2328", "#667079", "#e4e7eb"
# Paul Tol's "muted" scheme, which keeps its hues apart under the common colour-vision deficiencies; the marker says the same again.
MARKS = {
    "relu": ("#111111", "o"),
    "parametric_softplus": ("#332288", "s"),
    "softplus": ("#88CCEE", "D"),
    "silu": ("#CC6677", "^"),
    "gelu": ("#117733", "v"),
    "elu": ("#DDCC77", "P"),
    "celu": ("#999933", "X"),
    "smoothrelu": ("#44AA99", "h"),
    "smoothrelu_learned": ("#AA4499", "*"),
    "silu_learned": ("#EE99AA", "p"),
    "gelu_learned": ("#66AA55", "d"),
    "mish": ("#882255", "<"),
    "relu_smooth_backward": ("#888888", ">"),
}
_SPARE_COLOURS = ("#0077BB", "#EE7733", "#009988", "#CC3311", "#33BBEE", "#EE3377")
_SPARE_MARKERS = ("p", "8", "d", "H")
_LARGER = {"*": 1.5, "P": 1.15, "X": 1.15, "^": 1.1, "v": 1.1, "<": 1.1, ">": 1.1, "D": 0.9}


def mark(
    activation: str, *, attacker_activation: str | None = None, size: float = 8.0
) -> dict[str, Any]:
    """Return line properties of an activation's mark, hollow where the attacker saw another activation; equal names look equal."""
    if activation in MARKS:
        colour, marker = MARKS[activation]
    else:
        code = zlib.crc32(activation.encode())
        colour, marker = (
            _SPARE_COLOURS[code % len(_SPARE_COLOURS)],
            _SPARE_MARKERS[code % len(_SPARE_MARKERS)],
        )
    hollow = attacker_activation is not None and attacker_activation != activation
    return {
        "color": colour,
        "marker": marker,
        "markersize": size * _LARGER.get(marker, 1.0),
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour if hollow else "white",
        "markeredgewidth": size / 5 if hollow else size / 10,
    }


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure; width, height: inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def head(figure: Figure, title: str, *, subtitle: str, note: str = "") -> None:
    """Write a bold title, a smaller line below it, and a footnote; the layout keeps them clear of the axes."""
    width, height = figure.get_size_inches()
    lines = note.count("\n") + 1 if note else 0
    top, bottom = 0.62 / height, (0.10 + 0.17 * lines) / height
    figure.set_layout_engine(
        "constrained", rect=(0.1 / width, bottom, 1 - 0.2 / width, 1 - top - bottom)
    )
    left = 0.14 / width
    figure.text(left, 1 - 0.12 / height, title, fontsize=13, fontweight="bold", color=INK, va="top")
    figure.text(left, 1 - 0.40 / height, subtitle, fontsize=9, color=FAINT, va="top")
    if note:
        figure.text(
            left, 0.08 / height, note, fontsize=8, color=FAINT, va="bottom", linespacing=1.35
        )


def plain(axes: Axes, *, grid: str = "both") -> Axes:
    """Leave the axes two spines, a faint grid (`both`, `x`, `y`) and small tick labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    return axes


def label(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Name the axes, units included, and the panel."""
    axes.set_xlabel(x, fontsize=9.5, color=INK)
    axes.set_ylabel(y, fontsize=9.5, color=INK)
    axes.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold")


def error_bars(
    axes: Axes,
    x: float,
    y: float,
    *,
    colour: str,
    x_error: float = float("nan"),
    y_error: float = float("nan"),
) -> None:
    """Draw error bars below the marks; NaN draws none."""
    axes.errorbar(
        x,
        y,
        xerr=x_error,
        yerr=y_error,
        fmt="none",
        ecolor=colour,
        elinewidth=1.3,
        capsize=3,
        capthick=1.3,
        alpha=0.55,
        zorder=2,
    )


def legend_beside(axes: Axes, handles: list[Line2D], *, title: str = "") -> None:
    """Write the legend to the right of the axes, from their top."""
    legend = axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        fontsize=8.5,
        title=title,
        alignment="left",
    )
    legend.get_title().set(fontsize=8.5, color=FAINT)


def two_lines(name: str) -> str:
    """Break the name of a configuration with another attacker, which would make a legend wider than its figure."""
    return name.replace(" · attacker ", "\n· attacker ")


def spread_labels(places: NDArray[np.float64], *, reach: float = 11.0) -> NDArray[np.float64]:
    """Return (N, 2) offsets that keep short labels off the marks and off each other, chosen greedily among eight directions.

    places: (N, 2) positions of the marks; reach: distance of a label from its mark; both in typographic points.
    """
    angles = np.deg2rad([45, 135, -45, -135, 90, -90, 0, 180])
    offsets = reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    chosen, taken = [], places
    for index, place in enumerate(places):
        others = np.delete(taken, index, axis=0)
        if len(others):
            gaps = np.linalg.norm((place + offsets)[:, None] - others[None], axis=2).min(axis=1)
            # Beyond 1.5 reaches more room is no gain, so the first direction wins and labels stay where readers expect them.
            offset = offsets[int(np.argmax(np.minimum(gaps, 1.5 * reach)))]
        else:
            offset = offsets[0]
        chosen.append(offset)
        taken = np.concatenate([taken, (place + offset)[None]])
    return np.array(chosen).reshape(-1, 2)


def say_nothing(figure: Figure, text: str) -> Figure:
    """Write on an otherwise empty figure why it is empty."""
    axes = figure.add_subplot()
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", color=FAINT, fontsize=11)
    return figure


def percent(value: Mapping[str, float | None]) -> tuple[float, float]:
    """Return mean and standard deviation in percent; NaN, which draws no bar, for the deviation of a single seed."""
    mean, deviation = value["mean"], value["standard_deviation"]
    assert mean is not None
    return 100 * mean, float("nan") if deviation is None else 100 * deviation


def mean_and_spread(
    curves: list[dict[float, float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return epochs, means and standard deviations (0 for one curve) over the curves; each maps epoch → value and may skip epochs."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = [[curve[epoch] for curve in curves if epoch in curve] for epoch in epochs]
    deviations = [float(np.std(one, ddof=1)) if len(one) > 1 else 0.0 for one in values]
    return (
        np.array(epochs, dtype=np.float64),
        np.array([np.mean(one) for one in values], dtype=np.float64),
        np.array(deviations),
    )
