"""Curves of a sweep: robust accuracy against α, and training against the epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sat_ray.report.figures.seed_curves import mark_roll_backs
from sat_ray.report.figures.style import (
    FAINT,
    INK,
    head,
    label,
    log_axis,
    mark,
    mean_and_spread,
    new_figure,
    plain,
    relu_trials,
    two_lines,
)
from sat_ray.report.formatting import join_names
from sat_ray.report.leaderboard.rows import EvaluatedModel, display_names

_CURVES = (
    ("train/loss", "Training loss", "loss (nats)", 1.0),
    ("train/adversarial_accuracy", "Adversarial accuracy, training", "accuracy (%)", 100.0),
    ("val/clean_accuracy", "Clean accuracy, validation", "accuracy (%)", 100.0),
    ("val/robust_accuracy", "Robust accuracy, validation", "accuracy (%)", 100.0),
)


def alpha_response(trials: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw robust accuracy on validation against α, a panel per activation of `several_alphas`.

    Lines join trials of equal length only. trials: {"activation", "alpha", "attacker_activation",
    "val_robust_accuracy", "epochs"}, one per trial or per rung of a trial.
    """
    names = several_alphas(trials)
    longest = max(trial["epochs"] for trial in trials)
    drawn = [trial for trial in trials if trial["activation"] in names]
    height = relu_trials(trials)
    columns = 2 if len(names) == 4 else min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = new_figure(max(3.1 * columns + 0.4, 6.8), 2.75 * lines + 1.1)
    head(
        figure,
        "Response to α",
        subtitle="robust accuracy on the validation split, one mark per search trial",
        note=_alpha_note(drawn, longest=longest, with_relu=height is not None),
    )
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        own = [one for one in drawn if one["activation"] == name and one["alpha"] is not None]
        _alpha_panel(axes, own, longest=longest)
        if height is not None:
            _reference_line(axes, height)
        label(axes, x="α (log scale)" if axes.get_xscale() == "log" else "α", title=name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("robust accuracy (%)", fontsize=9.5, color=INK)
    return figure


def several_alphas(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the activations that were tried at two α or more."""
    found: dict[str, set[float]] = {}
    for trial in trials:
        if trial["alpha"] is not None:
            found.setdefault(trial["activation"], set()).add(trial["alpha"])
    return sorted(name for name, alphas in found.items() if len(alphas) > 1)


def _alpha_note(trials: Sequence[Mapping[str, Any]], *, longest: float, with_relu: bool) -> str:
    """Explain the marks and lines that are in the figure, and no others."""
    note = f"Full marks: {longest:g} epochs"
    if any(trial["epochs"] != longest for trial in trials):
        note += "; faint: trials stopped earlier, epochs beside them"
    note += "."
    if with_relu:
        note += f" Dashed: relu at {longest:g} epochs."
    if any(trial["attacker_activation"] != trial["activation"] for trial in trials):
        note += "\nHollow: the attacker saw another activation."
    return note


def _alpha_panel(axes: Axes, trials: Sequence[Mapping[str, Any]], *, longest: float) -> None:
    plain(axes)
    series: dict[tuple[str, float], dict[float, list[float]]] = {}
    for trial in trials:
        by_alpha = series.setdefault((trial["attacker_activation"], trial["epochs"]), {})
        by_alpha.setdefault(trial["alpha"], []).append(100 * trial["val_robust_accuracy"])
    for (attacker, epochs), by_alpha in series.items():
        style = mark(trials[0]["activation"], attacker_activation=attacker, size=8)
        alphas = sorted(by_alpha)
        opacity = 1.0 if epochs == longest else 0.4
        means = [float(np.mean(by_alpha[alpha])) for alpha in alphas]
        axes.plot(
            alphas,
            means,
            linewidth=1.4,
            color=style["color"],
            alpha=opacity,
            linestyle="-" if epochs == longest else ":",
        )
        every = [(alpha, value) for alpha in alphas for value in by_alpha[alpha]]
        axes.plot(*zip(*every, strict=True), linestyle="none", alpha=opacity, **style)
        if epochs != longest:
            axes.annotate(
                f"{epochs:g}",
                (alphas[-1], means[-1]),
                xytext=(7, -3),
                textcoords="offset points",
                fontsize=8,
                color=FAINT,
            )
    found = sorted({trial["alpha"] for trial in trials})
    if found[0] > 0 and found[-1] / found[0] >= 5:
        log_axis(axes, found[0], found[-1])
    axes.margins(0.12)


def _reference_line(axes: Axes, height: float) -> None:
    """Draw relu's accuracy as a dashed line."""
    axes.axhline(height, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.annotate(
        "relu",
        (1, height),
        xycoords=axes.get_yaxis_transform(),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )


def training_curves(models: Sequence[EvaluatedModel]) -> Figure:
    """Draw loss and accuracies against the epoch, one line per configuration.

    relu and the best by validation have bands.
    """
    by_name: dict[str, list[EvaluatedModel]] = {}
    for name, model in zip(display_names(models), models, strict=True):
        by_name.setdefault(name, []).append(model)
    figure = new_figure(10.4, 6.6)
    order = sorted(
        by_name,
        key=lambda name: -float(np.mean([model.val_robust_accuracy for model in by_name[name]])),
    )
    stressed = {order[0], *(name for name in order if by_name[name][0].is_relu_baseline)}
    crosses = " ✕: roll-backs by the guard." if any(model.events for model in models) else ""
    head(
        figure,
        "Training curves",
        subtitle="mean over seeds; robust accuracy is that of the validation attack, adversarial "
        "accuracy that of the training attack",
        note="Best by validation first. Thick, with bands (± standard deviation over seeds): "
        f"{join_names(sorted(stressed))}.{crosses}",
    )
    panels = figure.subplots(2, 2).ravel()
    for axes, (key, title, unit, scale) in zip(panels, _CURVES, strict=True):
        plain(axes)
        label(axes, x="epochs done", y=unit, title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for name in reversed(order):
            _curve(axes, by_name[name], key=key, scale=scale, stressed=name in stressed)
        if key == "val/robust_accuracy":
            mark_roll_backs(axes, [event for model in models for event in model.events])
    legend = [
        Line2D(
            [],
            [],
            label=two_lines(name),
            **_curve_style(by_name[name][0], stressed=name in stressed),
        )
        for name in order
    ]
    figure.legend(handles=legend, loc="outside right center", frameon=False, fontsize=8.5)
    return figure


def _curve(
    axes: Axes, models: Sequence[EvaluatedModel], *, key: str, scale: float, stressed: bool
) -> None:
    curves = [
        {epoch["epoch"] + 1: scale * epoch[key] for epoch in model.history if key in epoch}
        for model in models
    ]
    epochs, means, deviations = mean_and_spread(curves)
    if not len(epochs):
        return
    style = _curve_style(models[0], stressed=stressed)
    axes.plot(
        epochs, means, markevery=max(1, len(epochs) // 6), zorder=3 if stressed else 2, **style
    )
    if stressed:
        axes.fill_between(
            epochs,
            means - deviations,
            means + deviations,
            color=style["color"],
            alpha=0.18,
            linewidth=0,
        )


def _curve_style(model: EvaluatedModel, *, stressed: bool) -> dict[str, Any]:
    other_attacker = model.attacker_activation != model.activation
    return mark(
        model.activation, attacker_activation=model.attacker_activation, size=6 if stressed else 4.5
    ) | {
        "linewidth": 2.4 if stressed else 1.1,
        "linestyle": "--" if other_attacker else "-",
    }
