"""The report page: one self-contained HTML file that opens offline, from the board and the figures."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sat_ray.report.tables import NOTES, table1_rows
from sat_ray.report.text import (
    ABSENT,
    amount_text,
    attack_text,
    cut_text,
    interval,
    pixels,
    points,
    seconds,
    seeds_text,
    setting_text,
    spread,
    threat_text,
)
from sat_ray.spending import ESTIMATES
from sat_ray.tracking_uri import LOCAL_PAGES

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Title and caption of the known figures, in the order of the page; others follow under their own names.
FIGURES = {
    "clean_against_robust": ("Clean against robust accuracy", "One mark per configuration; up and to the right is better."),
    "table1": ("Table 1", "The paper's five combinations of backward passes, from this sweep's rows."),
    "alpha_response": ("Response to α", "Robust accuracy on the validation split for every search trial of an activation with an α."),
    "accuracy_against_steps": ("Against steps", "Robust accuracy if the attack had stopped earlier, on the test split."),
    "training_curves": ("Training curves", "Loss and accuracies by epoch, the mean over seeds per configuration."),
    "robustness_card": ("Robustness card of the champion", "The evidence behind the verdict, on validation images."),
    "adversarial_examples": ("Images and their adversarial counterparts", "What the attack changed, and what the model answered."),
}


def render(
    board: Mapping[str, Any],
    *,
    figures: Mapping[str, Path | str | bytes],
    command: str,
    versions: Mapping[str, str],
    notes: Sequence[str],
    config: Mapping[str, Any],
    cards: Sequence[Mapping[str, Any]] = (),
    hashes: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
    events: Sequence[Mapping[str, Any]] = (),
    digests: Mapping[str, str] | None = None,
    pages: str = "",
) -> str:
    """Render the board as one HTML page without external requests.

    figures: name → PNG as a path or as bytes; command: what reproduces the sweep; versions: package → version; notes: shown as they are;
    config: JSON-ready; cards: {"name", "card"} of each robustness card made, best candidate first; hashes: of what determined the results,
    by name; class_names: by label; events: the sentinel's roll-backs with "configuration" and "seed"; digests: sha256 of each checkpoint's
    weights; pages: address of the tracker's pages, "" for no links.
    Everything is escaped. Raises ValueError for a figure that is no PNG.
    """
    shown, costs = _figures(figures), board.get("cost")
    template = environment().get_template("report.html.j2")
    return template.render(
        board=board,
        cut=cut_text(board),
        costs=costs,
        priced=bool(costs and costs["price_per_accelerator_hour"]),
        estimates=ESTIMATES,
        table1=table1_rows(board),
        scale=_scale(board),
        total_seconds=sum(group["accelerator_seconds"] for group in board["groups"]),
        table1_figure=next((figure for figure in shown if figure["name"] == "table1"), None),
        card_figure=next((figure for figure in shown if figure["name"] == "robustness_card"), None),
        figures=[figure for figure in shown if figure["name"] not in ("table1", "robustness_card")],
        cards=cards,
        command=command,
        versions=dict(sorted(versions.items())),
        notes=[*NOTES, *notes],
        hashes=hashes or {},
        class_names=class_names,
        events=events,
        watched=(config.get("training") or {}).get("sentinel_every", 0),
        digests=digests or {},
        pages=pages if pages.startswith(("http://", "https://")) else "",
        config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )


def environment() -> Environment:
    """Return the templates of this folder, with the report's way to spell numbers."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.globals |= {"absent": ABSENT, "local_pages": LOCAL_PAGES}
    found.filters |= {
        "points": points,
        "signed_points": lambda fraction: points(fraction, signed=True),
        "spread": spread,
        "interval": interval,
        "pixels": pixels,
        "seconds": seconds,
        "money": amount_text,
        "setting": setting_text,
        "threat": threat_text,
        "attack": attack_text,
        "seeds": seeds_text,
    }
    return found


def _figures(figures: Mapping[str, Path | str | bytes]) -> list[dict[str, str | int]]:
    """Return {"name", "id", "title", "caption", "uri", "width", "height"} per figure, known ones first and in their order."""
    order = [*(name for name in FIGURES if name in figures), *sorted(set(figures) - set(FIGURES))]
    shown: list[dict[str, str | int]] = []
    for name in order:
        title, caption = FIGURES.get(name, (name.replace("_", " "), ""))
        identifier = "figure-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        shown.append({"name": name, "id": identifier, "title": title, "caption": caption, **image(name, figures[name])})
    return shown


def image(name: str, source: Path | str | bytes) -> dict[str, str | int]:
    """Return {"uri", "width", "height"}: the PNG as a data URI and its size on the page in CSS pixels."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data.startswith(_PNG_SIGNATURE):
        raise ValueError(f"figures[{name!r}] is no PNG (it starts with {data[:8]!r}); allowed: the bytes or the path of a PNG file")
    # A PNG states its size in bytes 16 to 24; the figures are drawn at 160 dots per inch, shown at 115, so small ones stay small.
    width, height = (round(int.from_bytes(data[start : start + 4]) * 0.72) for start in (16, 20))
    return {"uri": "data:image/png;base64," + base64.b64encode(data).decode("ascii"), "width": width, "height": height}


def _scale(board: Mapping[str, Any]) -> dict[str, float]:
    """Return {"low", "high"} of the strip beside the robust accuracies: all means ± standard deviations, with a margin."""
    ends = []
    for group in board["groups"]:
        mean, deviation = group["robust_accuracy"]["mean"], group["robust_accuracy"]["standard_deviation"] or 0.0
        ends += [mean - deviation, mean + deviation]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return {"low": min(ends) - margin, "high": max(ends) + margin}
