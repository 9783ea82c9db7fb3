"""How a comparison is shown in a terminal: tables, sentences and notes."""

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType

from sat_ray.evaluation.first_broken_step import CLEAN_ERROR, NEVER
from sat_ray.evaluation.intervals import wilson_interval
from sat_ray.report.compare.paired import LEVEL, ClassRow, Comparison, Pair, PairedTest
from sat_ray.report.compare.verdicts import (
    JudgedModel,
    counted_attacks,
    counted_specs,
    differing_settings,
    letter,
)
from sat_ray.report.formatting import (
    attack_text,
    interval,
    limits,
    p_text,
    plural,
    points,
    signed_points,
    threat_text,
)
from sat_ray.report.leaderboard.summary import BoolArray, IntArray
from sat_ray.report.table import WORDS, Column, Table, terminal_table, terminal_text
from sat_ray.threat import as_255ths

CLASSES_SHOWN = 20
FLOAT32_ROUNDING = 1e-7  # of a distance between two images in [0, 1]


def render(comparison: Comparison, *, flips: int) -> Iterator[RenderableType]:
    """Yield what to print, from top to bottom.

    flips: how many images to show of each direction; names are shown literally.
    """
    yield terminal_text(setting(comparison))
    yield terminal_table(_accuracies(comparison))
    yield terminal_table(_differences(comparison))
    for pair in comparison.pairs:
        yield terminal_text(sentence(pair))
    yield terminal_table(_classes(comparison))
    if flips:
        for pair in comparison.pairs:
            a = letter(pair.first)
            b = letter(pair.other)
            title = f"robust in {a}, broken in {b}"
            yield _flips(comparison, pair, pair.lost, title=title, shown=flips)
            title = f"robust in {b}, broken in {a}"
            yield _flips(comparison, pair, pair.gained, title=title, shown=flips)
    for note in notes(comparison):
        yield terminal_text(f"· {note}")


def setting(comparison: Comparison) -> str:
    """Spell what all accuracies refer to: images, attacks and, if recorded, the threat model."""
    first = comparison.models[0]
    specs = counted_specs(first)
    balls = sorted({_threat(spec) for spec in specs.values() if "threat_model.norm" in spec})
    attacks = "; ".join(_attack(name, specs) for name in counted_attacks(first))
    return " · ".join([f"n = {comparison.n:,} images", *balls, attacks])


def sentence(pair: Pair) -> str:
    """Sum up a pair's robust accuracies in one line."""
    test = pair.robust
    a = letter(pair.first)
    b = letter(pair.other)
    difference = f"{signed_points(test.difference)} points robust ({limits((test.low, test.high))})"
    if test.within_noise:
        return f"{b} − {a}: {difference}: within noise, {_noise_reason(test)}"
    better = b if test.difference > 0 else a
    return (
        f"{b} − {a}: {difference}: {better} is the more robust of these two checkpoints on these "
        "images"
    )


def notes(comparison: Comparison) -> list[str]:
    """Say how the figures were made and what they do not show."""
    models = comparison.models
    count = len(comparison.pairs)
    corrected = f"Holm p: corrected over {count} pairs; " if count > 1 else ""
    same = ", ".join(
        f"{100 * comparison.same_verdicts(pair):.2f} % {letter(pair.first)} and "
        f"{letter(pair.other)}"
        for pair in comparison.pairs
    )
    found = [
        "differences in points with Newcombe's paired 95 % interval (1998, method 10); "
        f"p: McNemar's exact test; {corrected}within noise: p > {LEVEL}"
        + (" after Holm" if count > 1 else ""),
        "McNemar compares these checkpoints on these images, not two activations or ways of "
        "training: that takes seeds, at least 3 of each",
        f"images with the same verdict: {same}",
    ]
    if missing := [letter(i) for i, model in enumerate(models) if not counted_specs(model)]:
        distances = ", ".join(
            f"{letter(i)} {as_255ths(model.largest_distance, rounding=FLOAT32_ROUNDING)}"
            for i, model in enumerate(models)
        )
        found.append(
            f"no threat model is recorded for {', '.join(missing)}; largest distance from an "
            f"image: {distances}"
        )
    elif differing := differing_settings(models):
        found.append(f"the evaluations differ in {', '.join(differing)}")
    return found


def _accuracies(comparison: Comparison) -> Table:
    columns = [
        Column("", lambda item: letter(item[0]), kind=WORDS),
        Column("model", lambda item: item[1].name, kind=WORDS),
        Column("robust", lambda item: float(item[1].images.robust.mean()), points),
        Column("95 % interval", lambda item: _wilson(item[1].images.robust), interval),
        Column("clean", lambda item: float(item[1].images.clean.mean()), points),
        Column("95 % interval", lambda item: _wilson(item[1].images.clean), interval),
    ]
    title = "Accuracies in %, Wilson 95 % intervals"
    return Table(columns, list(enumerate(comparison.models)), title=title)


def _differences(comparison: Comparison) -> Table:
    several = len(comparison.pairs) > 1
    holm = Column("Holm p", lambda item: item[2].holm_p_value, p_text)
    columns = [
        Column("", lambda item: _minus(item[1]), kind=WORDS),
        Column("", lambda item: item[0], kind=WORDS),
        Column("points", lambda item: item[2].difference, signed_points),
        Column("95 % interval", lambda item: (item[2].low, item[2].high), limits),
        Column("first alone", lambda item: item[2].only_first, "{:,}".format),
        Column("other alone", lambda item: item[2].only_other, "{:,}".format),
        Column("p", lambda item: item[2].p_value, p_text),
        *([holm] if several else []),
        Column("verdict", lambda item: _verdict(item[1], item[2]), kind=WORDS),
    ]
    robust = [("robust", pair, pair.robust) for pair in comparison.pairs]
    clean = [("clean", pair, pair.clean) for pair in comparison.pairs]
    title = "Paired differences of accuracy in points"
    return Table(columns, [*robust, *clean], title=title, sums=[len(robust)])


def _verdict(pair: Pair, test: PairedTest) -> str:
    if test.within_noise:
        return "within noise"
    return f"{letter(pair.other if test.difference > 0 else pair.first)} higher"


def _classes(comparison: Comparison) -> Table:
    rows = list(comparison.classes)
    title = "Robust accuracy by class in %"
    if len(rows) > CLASSES_SHOWN:
        rows.sort(key=lambda row: (-max(abs(gap) for gap in _gaps(row)), row.label))
        rows = rows[:CLASSES_SHOWN]
        title += f": the {CLASSES_SHOWN} of {len(comparison.classes):,} classes that differ most"
    columns = [
        Column("label", lambda row: row.label),
        Column("n", lambda row: row.n, "{:,}".format),
        *(
            Column(letter(index), lambda row, i=index: row.robust[i] / row.n, points)  # type: ignore[misc]
            for index in range(len(comparison.models))
        ),
        *(
            Column(_minus(pair), lambda row, i=place: _gaps(row)[i], signed_points)  # type: ignore[misc]
            for place, pair in enumerate(comparison.pairs)
        ),
    ]
    return Table(
        columns, rows, title=title, caption="differences in points, not tested class by class"
    )


def _gaps(row: ClassRow) -> list[float]:
    return [(count - row.robust[0]) / row.n for count in row.robust[1:]]


def _minus(pair: Pair) -> str:
    """Name the difference of a pair; its spaces do not break."""
    return f"{letter(pair.other)}\u00a0−\u00a0{letter(pair.first)}"


def _flips(
    comparison: Comparison, pair: Pair, rows: IntArray, *, title: str, shown: int
) -> RenderableType:
    """Return a table of images that only one of two models withstands."""
    if not len(rows):
        return terminal_text(f"{title}: no image")
    images = comparison.models[pair.first].images
    columns = [
        Column("image_id", lambda row: images.image_ids[row]),
        Column("label", lambda row: images.labels[row]),
    ]
    for index in (pair.first, pair.other):
        model = comparison.models[index]
        columns += [
            Column(f"{letter(index)} predicts", model.prediction.__getitem__),
            Column(f"{letter(index)} first broken", _first_broken(model), kind=WORDS),
        ]
    count = plural(len(rows), "image") + (f", the first {shown}" if len(rows) > shown else "")
    return terminal_table(Table(columns, rows[:shown].tolist(), title=f"{title}: {count}"))


def _first_broken(model: JudgedModel) -> Any:
    """Return a function from a row to where the image broke first."""

    def text(row: int) -> str:
        step = int(model.step[row])
        if step == NEVER:
            return "never"
        return "clean image" if step == CLEAN_ERROR else f"step {step} of {model.attack[row]}"

    return text


def _wilson(correct: BoolArray) -> tuple[float, float]:
    return wilson_interval(int(correct.sum()), len(correct))


def _noise_reason(test: PairedTest) -> str:
    if not test.only_first + test.only_other:
        return "the same images are robust in both"
    corrected = " after Holm's correction" if test.p_value <= LEVEL else ""
    return (
        f"{test.only_first} against {test.only_other} images are no significant difference"
        f"{corrected} (p = {p_text(test.holm_p_value)})"
    )


def _threat(spec: dict[str, Any]) -> str:
    threat = {"norm": spec["threat_model.norm"], "epsilon": spec["threat_model.epsilon"]}
    return threat_text({"threat_model": threat})


def _attack(name: str, specs: dict[str, dict[str, Any]]) -> str:
    recorded = {field: value for field, value in specs.get(name, {}).items() if value is not None}
    threat = {"norm": recorded.get("threat_model.norm", "linf")}
    return attack_text({"attack": recorded | {"name": name}, "threat_model": threat})
