"""Robust accuracy, and the gap to PGD's number, against the curvature max |f''|."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sat_ray.report.figures.style import (
    FAINT,
    INK,
    error_bars,
    head,
    label,
    legend_beside,
    log_axis,
    mark,
    new_figure,
    percent,
    plain,
    relu_trials,
)
from sat_ray.report.formatting import seeds_text, threat_text
from sat_ray.report.leaderboard.curvature import curvature_of
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.strong import LARGEST_SHARE

Group = Mapping[str, Any]
SHIFT = 0.05  # of a mark at the curvature of another family, as a share of the curvature
RELU_LINE = (0, (4, 3))


def curvature_figures(
    board: Mapping[str, Any], trials: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Figure]:
    """Draw the figures against curvature, by name; {} where no curvature is finite.

    trials: as `curves.alpha_response` takes them. Where the leaderboard has one α of every family,
    their validation accuracies make a second panel, because a line needs several α.
    """
    if not any(families(board, board["measure"]).values()):
        return {}
    drawn = {"robust_against_curvature": robust_against_curvature(board, trials)}
    if board["measure"] == STRONG:
        drawn["gap_against_curvature"] = gap_against_curvature(board)
    return drawn


def families(board: Mapping[str, Any], measure: str) -> dict[str, list[Group]]:
    """Return the configurations of each activation with a finite curvature and a figure.

    They are sorted by curvature. Configurations whose attacker saw another activation are left
    out: their curvature is not one number.
    """
    found: dict[str, list[Group]] = {}
    for group in sorted(
        board["groups"], key=lambda group: (group["activation"], group["curvature"] or 0.0)
    ):
        own = group["activation"] == group["attacker_activation"]
        if own and group["curvature"] is not None and group[measure] is not None:
            found.setdefault(group["activation"], []).append(group)
    return found


def robust_against_curvature(
    board: Mapping[str, Any], trials: Sequence[Mapping[str, Any]] = ()
) -> Figure:
    """Draw the accuracy that decides against curvature, one line a family.

    relu is a horizontal line: the limit of infinite curvature.
    """
    own = families(board, board["measure"])
    searched = search_lines(trials) if all(len(groups) < 2 for groups in own.values()) else {}
    by_strong = board["measure"] == STRONG
    figure = new_figure(9.6, 4.5)
    attack = board["strong_attack" if by_strong else "attack"]["name"]
    images = f"n = {board['rows'][0]['n']:,} test images"
    note = _note(board, own)
    if searched:
        seeds = max(trial.get("seeds", 1) for trial in trials)
        averaged = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
        note += (
            f"\nSearch trials: {averaged}, validation images, attack of training; another scale."
        )
    head(
        figure,
        f"{'Strong robust' if by_strong else 'Robust'} accuracy against curvature",
        subtitle=f"{board['dataset']} · {threat_text(board)} · {attack} · {images}",
        note=note,
    )
    panels = figure.subplots(1, 2 if searched else 1, squeeze=False).ravel()
    handles = _family_lines(panels[0], board, own, measure=board["measure"])
    _curvature_axis(panels[0])
    label(
        panels[0],
        x="curvature max |f″| (log scale)",
        y=f"{'strong ' if by_strong else ''}robust accuracy (%)",
        title="Finalists, test images" if searched else "",
    )
    if searched:
        handles |= _search_panel(panels[1], searched, trials)
    legend_beside(panels[-1], list(handles.values()))
    return figure


def gap_against_curvature(board: Mapping[str, Any]) -> Figure:
    """Draw the share of PGD's survivors that the strong attacks break, against curvature."""
    own = families(board, "gap_share")
    figure = new_figure(9.6, 4.1)
    name = str(board["attack"]["name"])
    broken = f"survivors of {name} that {board['strong_attack']['name']} break"
    head(
        figure,
        "How much PGD overestimates: the gap against curvature",
        subtitle=f"{board['dataset']} · {threat_text(board)} · {broken}",
        note=_note(board, own)
        + "\nAbove the dotted line PGD overestimates a row: its gradients mislead the attack.",
    )
    axes = figure.add_subplot()
    handles = _family_lines(axes, board, own, measure="gap_share")
    axes.axhline(100 * LARGEST_SHARE, color=FAINT, linewidth=1.1, linestyle=":")
    handles["limit"] = Line2D(
        [], [], color=FAINT, linewidth=1.1, linestyle=":", label=f"limit: {100 * LARGEST_SHARE:g} %"
    )
    axes.set_ylim(bottom=0)
    _curvature_axis(axes)
    label(axes, x="curvature max |f″| (log scale)", y="broken survivors (%)")
    legend_beside(axes, list(handles.values()))
    return figure


def search_lines(trials: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return (curvature, validation accuracy in %) of each activation tried at several α.

    Only the longest trials count.
    """
    longest = max((trial["epochs"] for trial in trials), default=0)
    found: dict[str, dict[float, list[float]]] = {}
    for trial in trials:
        curvature = curvature_of(trial["activation"], trial["alpha"])
        own = trial["activation"] == trial["attacker_activation"]
        if own and trial["epochs"] == longest and np.isfinite(curvature):
            found.setdefault(trial["activation"], {}).setdefault(curvature, []).append(
                100 * trial["val_robust_accuracy"]
            )
    return {
        name: [(curvature, float(np.mean(values))) for curvature, values in sorted(points.items())]
        for name, points in sorted(found.items())
        if len(points) > 1
    }


def _note(board: Mapping[str, Any], own: Mapping[str, Sequence[Group]]) -> str:
    """Say what marks, bars and the line of relu are."""
    text = f"Mean over {seeds_text(board)}; bars: standard deviation over seeds."
    if _relu(board) is not None:
        text += " Dashed, with band: relu, whose curvature is infinite."
    counts = Counter(group["curvature"] for groups in own.values() for group in groups)
    if max(counts.values()) > 1:
        text += " Marks of equal curvature: moved apart."
    left_out = [
        group["configuration"]
        for group in board["groups"]
        if group["curvature"] is None and group["activation"] != "relu"
    ]
    if left_out:
        text += f"\nNot drawn, because they have no single curvature: {', '.join(left_out)}."
    return text


def _relu(board: Mapping[str, Any]) -> Group | None:
    """Return the plain relu of the leaderboard; None without one, or with several."""
    found = [
        group
        for group in board["groups"]
        if group["activation"] == group["attacker_activation"] == "relu"
    ]
    return found[0] if len(found) == 1 else None


def _family_lines(
    axes: Axes, board: Mapping[str, Any], own: Mapping[str, Sequence[Group]], *, measure: str
) -> dict[str, Line2D]:
    """Draw one line a family with error bars, and relu's line with its band.

    Returns the entries of the legend.
    """
    plain(axes)
    handles = {}
    taken: Counter[float] = Counter()
    for name, groups in own.items():
        style = mark(name, size=8)
        places = []
        for group in groups:
            curvature = group["curvature"]
            x = curvature * (1 + SHIFT) ** taken[curvature]
            taken[curvature] += 1
            y, error = percent(group[measure])
            error_bars(axes, x, y, colour=style["color"], y_error=error)
            places.append((x, y))
        line = "-" if len(places) > 1 else "none"
        axes.plot(*zip(*places, strict=True), linewidth=1.6, linestyle=line, **style)
        handles[name] = Line2D([], [], linewidth=1.6, linestyle=line, label=name, **style)
    relu = _relu(board)
    if relu is not None and relu[measure] is not None:
        height, deviation = percent(relu[measure])
        axes.axhline(height, color=INK, linewidth=1.3, linestyle=RELU_LINE)
        if np.isfinite(deviation):
            axes.axhspan(height - deviation, height + deviation, color=INK, alpha=0.09, linewidth=0)
        handles["relu"] = Line2D(
            [], [], color=INK, linewidth=1.3, linestyle=RELU_LINE, label=f"relu: {height:.1f} (∞)"
        )
    axes.margins(0.08)
    return handles


def _search_panel(
    axes: Axes,
    searched: Mapping[str, Sequence[tuple[float, float]]],
    trials: Sequence[Mapping[str, Any]],
) -> dict[str, Line2D]:
    """Draw the search trials of every family with several α; return the entries of the legend."""
    plain(axes)
    handles = {}
    for name, places in searched.items():
        style = mark(name, size=7)
        axes.plot(*zip(*places, strict=True), linewidth=1.4, **style)
        handles[name] = Line2D([], [], linewidth=1.4, label=name, **style)
    relu = relu_trials(trials)
    if relu is not None:
        axes.axhline(relu, color=INK, linewidth=1.3, linestyle=RELU_LINE)
    axes.margins(0.08)
    _curvature_axis(axes)
    label(
        axes,
        x="curvature max |f″| (log scale)",
        y="robust accuracy (%)",
        title="Search trials, validation images",
    )
    return handles


def _curvature_axis(axes: Axes) -> None:
    """Give axes a logarithmic horizontal axis, at least a factor of 4 wide."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high / low < 4:
        middle = (low * high) ** 0.5
        low, high = middle / 2, middle * 2
        axes.set_xlim(low, high)
    log_axis(axes, low, high)
