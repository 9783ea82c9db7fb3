"""What all figures share: one mark per activation, plain axes, titles and footnotes.

Object API only, no global matplotlib state.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

REACH = 11.0  # of a label from its mark, in typographic points
INK, FAINT, GRID = "#1f2328", "#667079", "#e4e7eb"
# Paul Tol's "muted" scheme, whose hues differ under the common colour-vision deficiencies too;
# the marker repeats the distinction.
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
    """Return line properties of an activation's mark; equal names look equal.

    It is hollow where the attacker saw another activation.
    """
    code = zlib.crc32(activation.encode())
    spare = (
        _SPARE_COLOURS[code % len(_SPARE_COLOURS)],
        _SPARE_MARKERS[code % len(_SPARE_MARKERS)],
    )
    colour, marker = MARKS.get(activation, spare)
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
    """Write a bold title, a smaller line below it, and a footnote, clear of the axes."""
    width, height = figure.get_size_inches()
    lines = note.count("\n") + 1 if note else 0
    top = 0.62 / height
    bottom = (0.10 + 0.17 * lines) / height
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
    """Break the name of a configuration with another attacker, too long for a legend."""
    return name.replace(" · attacker ", "\n· attacker ")


def spread_labels(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, 2) offsets that keep short labels off the marks and off each other.

    They are chosen greedily among eight directions. places: (N, 2) positions of the marks, in
    typographic points.
    """
    angles = np.deg2rad([45, 135, -45, -135, 90, -90, 0, 180])
    offsets = REACH * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    chosen = []
    taken = places
    for index, place in enumerate(places):
        others = np.delete(taken, index, axis=0)
        away = np.linalg.norm((place + offsets)[:, None] - others[None], axis=2)
        gaps = away.min(axis=1, initial=1.5 * REACH)
        # Gaps above 1.5 reaches count as equal, so the first direction is the usual one.
        offset = offsets[int(np.argmax(gaps))]
        chosen.append(offset)
        taken = np.concatenate([taken, (place + offset)[None]])
    return np.array(chosen).reshape(-1, 2)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Give axes a logarithmic horizontal axis whose ticks are plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def relu_trials(trials: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean validation accuracy in % of relu's longest trials; None without any."""
    longest = max((trial["epochs"] for trial in trials), default=0)
    values = [
        100 * trial["val_robust_accuracy"]
        for trial in trials
        if trial["activation"] == trial["attacker_activation"] == "relu"
        and trial["epochs"] == longest
    ]
    return float(np.mean(values)) if values else None


def percent(value: Mapping[str, float | None]) -> tuple[float, float]:
    """Return mean and standard deviation in percent; NaN, which draws no bar, for one seed."""
    mean = value["mean"]
    deviation = value["standard_deviation"]
    assert mean is not None
    return 100 * mean, float("nan") if deviation is None else 100 * deviation


def mean_and_spread(
    curves: list[dict[float, float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return epochs, means and standard deviations (0 for one curve) over the curves.

    Each curve maps epoch → value and may skip epochs.
    """
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = [[curve[epoch] for curve in curves if epoch in curve] for epoch in epochs]
    deviations = [float(np.std(one, ddof=1)) if len(one) > 1 else 0.0 for one in values]
    return (
        np.array(epochs, dtype=np.float64),
        np.array([np.mean(one) for one in values], dtype=np.float64),
        np.array(deviations),
    )
