"""How a comparison is shown in a terminal: accuracies, differences, classes, the images that flipped, and what it all means."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sat_ray.evaluation.intervals import accuracy, wilson_interval
from sat_ray.report.compare.paired import ClassRow, Comparison, Pair, PairedTest
from sat_ray.report.compare.verdicts import (
    NOT_BROKEN,
    JudgedModel,
    counted_attacks,
    counted_specs,
    differing_settings,
    letter,
)
from sat_ray.report.formatting import attack_text, interval, pixels, points, threat_text
from sat_ray.report.leaderboard.summary import BoolArray, IntArray

CLASSES_SHOWN = 20
CLEAN_ERROR = -2


def render(comparison: Comparison, *, flips: int) -> Iterator[RenderableType]:
    """Yield what to print, from top to bottom. flips: how many images to show of each direction; names are shown literally."""
    yield Text(setting(comparison))
    yield _accuracies(comparison)
    yield _differences(comparison)
    for pair in comparison.pairs:
        yield Text(sentence(comparison, pair))
    yield _classes(comparison)
    if flips:
        for pair in comparison.pairs:
            a, b = letter(pair.first), letter(pair.other)
            yield _flips(
                comparison, pair, pair.lost, title=f"robust in {a}, broken in {b}", shown=flips
            )
            yield _flips(
                comparison, pair, pair.gained, title=f"robust in {b}, broken in {a}", shown=flips
            )
    for note in notes(comparison):
        yield Text(f"· {note}")


def setting(comparison: Comparison) -> str:
    """Spell what all accuracies refer to: images, attacks and, where the files record it, the threat model."""
    first = comparison.models[0]
    specs = counted_specs(first)
    balls = sorted({_threat(spec) for spec in specs.values() if "threat_model.norm" in spec})
    return " · ".join(
        [
            f"n = {comparison.n:,} images",
            *balls,
            "; ".join(_attack(name, specs) for name in counted_attacks(first)),
        ]
    )


def sentence(comparison: Comparison, pair: Pair) -> str:
    """Say in one line what a pair's robust accuracies come to."""
    test, a, b = pair.robust, letter(pair.first), letter(pair.other)
    found = f"{b} − {a}: {points(test.difference, signed=True)} points robust ({_limits(test)})"
    if test.within_noise:
        return f"{found}: within noise, {_noise_reason(test)}"
    return f"{found}: {b if test.difference > 0 else a} is the more robust of these two checkpoints on these images"


def notes(comparison: Comparison) -> list[str]:
    """Say how the figures were made and what they do not show."""
    models, count = comparison.models, len(comparison.pairs)
    found = [
        "differences in points with Newcombe's paired 95 % interval (1998, method 10); p: McNemar's exact test; "
        + (f"Holm p: corrected over {count} pairs; " if count > 1 else "")
        + "within noise: p > 0.05"
        + (" after Holm" if count > 1 else ""),
        "McNemar compares these checkpoints on these images, not two activations or ways of training: that takes seeds, at least 3 of each",
    ]
    same = ", ".join(
        f"{100 * comparison.same_verdicts(pair):.2f} % {letter(pair.first)} and {letter(pair.other)}"
        for pair in comparison.pairs
    )
    found.append(f"images with the same verdict: {same}")
    if missing := [letter(i) for i, model in enumerate(models) if not counted_specs(model)]:
        distances = ", ".join(
            f"{letter(i)} {pixels(model.largest_distance)}" for i, model in enumerate(models)
        )
        found.append(
            f"no threat model is recorded for {', '.join(missing)}; largest distance from an image: {distances}"
        )
    elif differing := differing_settings(models):
        found.append(f"the evaluations differ in {', '.join(differing)}")
    return found


def _accuracies(comparison: Comparison) -> Table:
    table = Table(title="Accuracies in %, Wilson 95 % intervals", title_justify="left")
    table.add_column("")
    table.add_column("model", overflow="fold")
    for name in ("robust", "95 % interval", "clean", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, model in enumerate(comparison.models):
        table.add_row(
            letter(index),
            Text(model.name),
            *_with_interval(model.images.robust),
            *_with_interval(model.images.clean),
        )
    return table


def _differences(comparison: Comparison) -> Table:
    table = Table(title="Paired differences of accuracy in points", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("")
    for name in (
        "points",
        "95 % interval",
        "first alone",
        "other alone",
        "p",
        *(["Holm p"] if len(comparison.pairs) > 1 else []),
    ):
        table.add_column(
            name, justify="right", no_wrap=name in ("points", "95 % interval", "p", "Holm p")
        )
    table.add_column("verdict")
    for kind in ("robust", "clean"):
        for pair in comparison.pairs:
            test = pair.robust if kind == "robust" else pair.clean
            table.add_row(
                f"{letter(pair.other)} − {letter(pair.first)}",
                kind,
                *_test_cells(test, pair, corrected=len(comparison.pairs) > 1),
            )
        table.add_section()
    return table


def _test_cells(test: PairedTest, pair: Pair, *, corrected: bool) -> list[str]:
    verdict = (
        "within noise"
        if test.within_noise
        else f"{letter(pair.other if test.difference > 0 else pair.first)} higher"
    )
    counts = [f"{test.only_first:,}", f"{test.only_other:,}"]
    p_values = [_p(test.p_value), *([_p(test.holm_p_value)] if corrected else [])]
    return [points(test.difference, signed=True), _limits(test), *counts, *p_values, verdict]


def _classes(comparison: Comparison) -> Table:
    rows = list(comparison.classes)
    title = "Robust accuracy by class in %"
    if len(rows) > CLASSES_SHOWN:
        rows = sorted(rows, key=lambda row: (-max(abs(gap) for gap in _gaps(row)), row.label))[
            :CLASSES_SHOWN
        ]
        title += f": the {CLASSES_SHOWN} of {len(comparison.classes):,} classes that differ most"
    table = Table(
        title=title,
        title_justify="left",
        caption="differences in points, not tested class by class",
        caption_justify="left",
    )
    for name in ("label", "n", *map(letter, range(len(comparison.models)))):
        table.add_column(name, justify="right")
    for pair in comparison.pairs:
        table.add_column(
            f"{letter(pair.other)} − {letter(pair.first)}", justify="right", no_wrap=True
        )
    for row in rows:
        shares = [points(count / row.n) for count in row.robust]
        table.add_row(
            str(row.label), f"{row.n:,}", *shares, *(points(gap, signed=True) for gap in _gaps(row))
        )
    return table


def _gaps(row: ClassRow) -> list[float]:
    return [(count - row.robust[0]) / row.n for count in row.robust[1:]]


def _flips(
    comparison: Comparison, pair: Pair, rows: IntArray, *, title: str, shown: int
) -> RenderableType:
    count = f"{len(rows):,} image{'' if len(rows) == 1 else 's'}"
    if not len(rows):
        return Text(f"{title}: no image")
    table = Table(
        title=f"{title}: {count}" + (f", the first {shown}" if len(rows) > shown else ""),
        title_justify="left",
    )
    for name in ("image_id", "label"):
        table.add_column(name, justify="right")
    for index in (pair.first, pair.other):
        table.add_column(f"{letter(index)} predicts", justify="right")
        table.add_column(f"{letter(index)} first broken")
    images = comparison.models[pair.first].images
    for row in rows[:shown].tolist():
        cells = [
            cell
            for index in (pair.first, pair.other)
            for cell in _fate(comparison.models[index], row)
        ]
        table.add_row(
            str(images.image_ids[row]), str(images.labels[row]), *(Text(cell) for cell in cells)
        )
    return table


def _fate(model: JudgedModel, row: int) -> tuple[str, str]:
    """Return what a model predicted for an image and where it broke first."""
    step = int(model.step[row])
    if step == NOT_BROKEN:
        return str(model.prediction[row]), "never"
    return str(
        model.prediction[row]
    ), "clean image" if step == CLEAN_ERROR else f"step {step} of {model.attack[row]}"


def _with_interval(correct: BoolArray) -> tuple[str, str]:
    count, n = int(np.count_nonzero(correct)), len(correct)
    return points(accuracy(count, n)), interval(wilson_interval(count, n))


def _limits(test: PairedTest) -> str:
    return f"{points(test.low, signed=True)} to {points(test.high, signed=True)}"


def _noise_reason(test: PairedTest) -> str:
    discordant = test.only_first + test.only_other
    if not discordant:
        return "they withstand the same images"
    corrected = " after Holm's correction" if test.p_value <= 0.05 else ""
    return f"{test.only_first} against {test.only_other} images are no difference{corrected} (p = {_p(test.holm_p_value)})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _threat(spec: dict[str, object]) -> str:
    return threat_text(
        {
            "threat_model": {
                "norm": spec["threat_model.norm"],
                "epsilon": spec["threat_model.epsilon"],
            }
        }
    )


def _attack(name: str, specs: dict[str, dict[str, object]]) -> str:
    recorded = {field: value for field, value in specs.get(name, {}).items() if value is not None}
    return attack_text({"attack": recorded | {"name": name}})
