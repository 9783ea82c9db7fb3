"""The figures of the leaderboard. Each function returns a matplotlib Figure, without pyplot."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sat_ray.report.figures.style import (
    FAINT,
    INK,
    error_bars,
    head,
    label,
    legend_beside,
    mark,
    new_figure,
    percent,
    plain,
    spread_labels,
    two_lines,
)
from sat_ray.report.formatting import pgd_name, seeds_text, setting_text
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.table1 import table1_rows


def png(figure: Figure) -> bytes:
    """Return a PNG of 160 dots per inch; the same figure gives the same bytes."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=160, metadata={"Software": None})
    return sink.getvalue()


def pdf(figure: Figure) -> bytes:
    """Return a vector PDF of a figure that `png` has drawn, without a date.

    The same figure gives the same bytes.
    """
    figure.set_layout_engine("none")  # another round would move the axes a little
    sink = io.BytesIO()
    # Fonts as TrueType: many venues refuse Type 3, which is the default.
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(sink, format="pdf", metadata={"CreationDate": None, "Producer": None})
    return sink.getvalue()


def clean_against_robust(board: Mapping[str, Any]) -> Figure:
    """Draw clean against robust accuracy, one mark per configuration, numbered best first."""
    figure = new_figure(9.6, 5.6)
    head(
        figure,
        "Clean against robust accuracy",
        subtitle=setting_text(board),
        note=f"Error bars: standard deviation over seeds ({seeds_text(board)}). Shape and colour: "
        "activation of the weight update; hollow: the attacker saw another one.",
    )
    axes = plain(figure.add_subplot())
    handles = []
    places = []
    for rank, group in enumerate(board["groups"], start=1):
        style = mark(group["activation"], attacker_activation=group["attacker_activation"], size=9)
        strong = group[board["measure"]] is not None
        x, x_error = percent(group["clean_accuracy"])
        y, y_error = percent(group[board["measure"] if strong else "robust_accuracy"])
        error_bars(axes, x, y, colour=style["color"], x_error=x_error, y_error=y_error)
        axes.plot(x, y, linestyle="none", **style)
        places.append((x, y))
        name = two_lines(group["configuration"])
        beside = "" if strong else f" ({pgd_name(board)})"
        handles.append(
            Line2D([], [], linestyle="none", label=f"{rank}   {y:.1f}   {name}{beside}", **style)
        )
    axis = f"{'strong ' if board['measure'] == STRONG else ''}robust accuracy (%)"
    label(axes, x="clean accuracy (%)", y=axis)
    axes.margins(0.08)
    legend_beside(axes, handles, title=f"rank, {axis}")
    _number_marks(axes, np.array(places))
    return figure


def _number_marks(axes: Axes, places: NDArray[np.float64]) -> None:
    """Write 1, 2, 3 … beside the marks."""
    spans = np.array([np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())])
    # The panel measures about 380 by 300 points; a rough figure is enough to choose a direction.
    offsets = spread_labels(places / spans * (380, 300))
    for rank, (place, offset) in enumerate(zip(places, offsets, strict=True), start=1):
        axes.annotate(
            str(rank),
            place,
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            color=INK,
            zorder=5,
        )


def table1(board: Mapping[str, Any]) -> Figure:
    """Draw the paper's five combinations of backward passes, clean and robust side by side."""
    rows = table1_rows(board)
    figure = new_figure(9.6, 3.9)
    note = (
        "ReLU in every forward pass of the first four rows.\nBoth panels span equally many points. "
        f"Error bars: standard deviation over seeds ({seeds_text(board)})."
    )
    head(figure, "Table 1: where the gradient is improved", subtitle=setting_text(board), note=note)
    panels = figure.subplots(1, 2, sharey=True)
    by_strong = board["measure"] == STRONG
    names = ("Clean", "Strong robust" if by_strong else "Robust")
    for axes, key, name in zip(panels, ("clean_accuracy", board["measure"]), names, strict=True):
        plain(axes, grid="x")
        label(axes, x=f"{name.lower()} accuracy (%)", title=name)
        for position, row in enumerate(rows):
            _table1_mark(axes, row["group"], key=key, position=position)
        axes.tick_params(left=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    panels[0].set_yticks(range(len(rows)), [_table1_label(row) for row in rows], fontsize=9)
    panels[0].set_ylim(len(rows) - 0.4, -0.7)
    _same_span(panels)
    return figure


def _same_span(panels: Sequence[Axes]) -> None:
    """Give all panels the same span, so that equal distances are equal differences."""
    limits = [axes.get_xlim() for axes in panels]
    span = 1.15 * max(high - low for low, high in limits)
    for axes, (low, high) in zip(panels, limits, strict=True):
        end = min((low + high + span) / 2, 101.0)
        axes.set_xlim(end - span, end)


def _table1_mark(axes: Axes, group: Mapping[str, Any] | None, *, key: str, position: int) -> None:
    if group is None or group[key] is None:
        missing = "not in this sweep" if group is None else "no strong number"
        axes.text(
            0.5,
            position,
            missing,
            transform=axes.get_yaxis_transform(),
            ha="center",
            va="center",
            color=FAINT,
            fontsize=8.5,
        )
        return
    style = mark(group["activation"], attacker_activation=group["attacker_activation"], size=9)
    x, error = percent(group[key])
    error_bars(axes, x, position, colour=style["color"], x_error=error)
    axes.plot(x, position, linestyle="none", **style)
    axes.annotate(
        f"{x:.1f}",
        (x, position),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=INK,
    )


def _table1_label(row: Mapping[str, Any]) -> str:
    if not row["optimizer_backward"]:
        return "parametric softplus,\nforward and backward"
    return f"attacker {row['attacker_backward']}, optimizer {row['optimizer_backward']}"
