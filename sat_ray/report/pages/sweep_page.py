"""The report page: one self-contained HTML file that opens offline, from the board and the figures."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sat_ray.report.formatting import (
    ABSENT,
    amount_text,
    attack_text,
    cut_text,
    interval,
    pgd_name,
    pixels,
    points,
    seconds,
    seeds_text,
    setting_text,
    threat_text,
)
from sat_ray.report.leaderboard.columns import (
    NAME,
    NUMBER,
    STRIP,
    class_columns,
    compared_groups,
    difference_columns,
    group_columns,
    row_columns,
    table1_columns,
    table1_rows,
    training_columns,
)
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.strong import FLATTERED
from sat_ray.report.leaderboard.tables import notes_of, power_text
from sat_ray.storage.uris import LOCAL_PAGES
from sat_ray.sweep.cost.spent import ESTIMATES

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Title and caption of the known figures, in the order of the page; others follow under their own names.
FIGURES = {
    "robust_against_curvature": (
        "Against curvature",
        "Does a softer activation make a more robust network? One line per family.",
    ),
    "gap_against_curvature": (
        "The gap against curvature",
        "How far PGD is off, by activation: what no gradient shows is no robustness.",
    ),
    "clean_against_robust": (
        "Clean against robust accuracy",
        "One mark per configuration; up and to the right is better.",
    ),
    "table1": (
        "Table 1",
        "The paper's five combinations of backward passes, from this sweep's rows.",
    ),
    "alpha_response": (
        "Response to α",
        "Robust accuracy on the validation split for every search trial of an activation with several α.",
    ),
    "accuracy_against_steps": (
        "Against steps",
        "Robust accuracy if the PGD attack had stopped earlier, on the test split.",
    ),
    "training_curves": (
        "Training curves",
        "Loss and accuracies by epoch, the mean over seeds per configuration.",
    ),
    "robustness_card": (
        "Robustness card of the champion",
        "The evidence behind the verdict, on validation images.",
    ),
    "adversarial_examples": (
        "Images and their adversarial counterparts",
        "What the attack changed, and what the model answered.",
    ),
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
    environment: Mapping[str, str] | None = None,
) -> str:
    """Render the board as one HTML page without external requests.

    figures: name → PNG as a path or as bytes; command: what reproduces the sweep; versions: package → version; notes: shown as they are;
    config: JSON-ready; cards: {"name", "card"} of each robustness card made, best candidate first; hashes: of what determined the results,
    by name; class_names: by label; events: the guard's roll-backs with "configuration" and "seed"; digests: sha256 of each checkpoint's
    weights; pages: address of the tracker's pages, "" for no links; environment: where and when it was computed, by name.
    Everything is escaped. Raises ValueError for a figure that is no PNG.
    """
    shown, costs = _figures(figures), board.get("cost")
    template = templates().get_template("report.html.j2")
    on_gpu = bool((config.get("resources") or {}).get("accelerator"))
    return template.render(
        board=board,
        cut=cut_text(board),
        power=power_text(board),
        by_strong=board["measure"] == STRONG,
        quoted=board["champion"]["row"][STRONG] is not None,
        pgd=pgd_name(board),
        flattered=FLATTERED,
        costs=costs,
        priced=bool(costs and costs["price_per_accelerator_hour"]),
        held="the GPUs it held" if on_gpu else "its worker processes (no GPU was used)",
        estimates=ESTIMATES,
        tables=_tables(board, class_names=class_names, pages=_linked(pages)),
        scale=_scale(board),
        is_champion=lambda group: group["configuration"] == board["champion"]["configuration"],
        is_champion_row=lambda row: _same_model(row, board["champion"]["row"]),
        total_seconds=sum(group["accelerator_seconds"] for group in board["groups"]),
        table1_figure=next((figure for figure in shown if figure["name"] == "table1"), None),
        card_figure=next((figure for figure in shown if figure["name"] == "robustness_card"), None),
        figures=[figure for figure in shown if figure["name"] not in ("table1", "robustness_card")],
        cards=cards,
        command=command,
        versions=dict(sorted(versions.items())),
        environment=environment or {},
        notes=[*notes_of(board), *notes],
        hashes=hashes or {},
        events=events,
        watched=(config.get("training") or {}).get("guard_every", 0),
        files=_files(board, digests or {}),
        pages=_linked(pages),
        config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )


def _same_model(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(row[name] == other[name] for name in ("configuration", "seed"))


def _linked(pages: str) -> str:
    """Return the address of the tracker's pages where it is one that a page may link to."""
    return pages if pages.startswith(("http://", "https://")) else ""


def _tables(
    board: Mapping[str, Any], *, class_names: Sequence[str], pages: str
) -> dict[str, dict[str, Any]]:
    """Return {"columns", "items"} of every table of the page that is made of columns."""
    slowest = sorted(board["groups"], key=lambda group: -group["accelerator_seconds"])
    return {
        "groups": {"columns": group_columns(board), "items": board["groups"]},
        "differences": {"columns": difference_columns(board), "items": compared_groups(board)},
        "table1": {"columns": table1_columns(board), "items": table1_rows(board)},
        "rows": {"columns": row_columns(board, pages=pages), "items": board["rows"]},
        "training": {"columns": training_columns(), "items": slowest},
        "classes": {
            "columns": class_columns(board, class_names),
            "items": board["champion"]["per_class"],
        },
    }


def _files(board: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """Return where the checkpoints are: the folder that all share, and of each row its place below it and the digest of its weights."""
    folders = [row["checkpoint"].split("/")[:-1] for row in board["rows"]]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    folder = "/".join(names[0] for names in shared)
    return {
        "folder": folder,
        "rows": [
            {
                "name": row["configuration"],
                "seed": row["seed"],
                "place": row["checkpoint"].removeprefix(f"{folder}/")
                if folder
                else row["checkpoint"],
                "digest": digests.get(row["checkpoint"], "")[:16],
            }
            for row in board["rows"]
        ],
    }


def templates() -> Environment:
    """Return the templates of this folder, with the report's way to spell numbers."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {
        "absent": ABSENT,
        "local_pages": LOCAL_PAGES,
        "NAME": NAME,
        "NUMBER": NUMBER,
        "STRIP": STRIP,
    }
    found.filters |= {
        "points": points,
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
        shown.append(
            {
                "name": name,
                "id": identifier,
                "title": title,
                "caption": caption,
                **image(name, figures[name]),
            }
        )
    return shown


def image(name: str, source: Path | str | bytes) -> dict[str, str | int]:
    """Return {"uri", "width", "height"}: the PNG as a data URI and its size on the page in CSS pixels."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data.startswith(_PNG_SIGNATURE):
        raise ValueError(
            f"figures[{name!r}] is no PNG (it starts with {data[:8]!r}); allowed: the bytes or the path of a PNG file"
        )
    # A PNG states its size in bytes 16 to 24; the figures are drawn at 160 dots per inch, shown at 115, so small ones stay small.
    width, height = (round(int.from_bytes(data[start : start + 4]) * 0.72) for start in (16, 20))
    return {
        "uri": "data:image/png;base64," + base64.b64encode(data).decode("ascii"),
        "width": width,
        "height": height,
    }


def _scale(board: Mapping[str, Any]) -> dict[str, float]:
    """Return {"low", "high"} of the strip beside the accuracies that decide: all means ± standard deviations, with a margin."""
    ends = []
    for group in board["groups"]:
        if (found := group[board["measure"]]) is not None:
            ends += [
                found["mean"] - (found["standard_deviation"] or 0.0),
                found["mean"] + (found["standard_deviation"] or 0.0),
            ]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return {"low": min(ends) - margin, "high": max(ends) + margin}
