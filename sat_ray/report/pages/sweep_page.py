"""The report page: one self-contained HTML file that opens offline."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.report.cost_tables import stage_table, trial_table
from sat_ray.report.formatting import (
    cut_text,
    pgd_name,
    points,
    seeds_text,
)
from sat_ray.report.leaderboard.columns import (
    CONFIGURATION,
    class_columns,
    compared_groups,
    difference_columns,
    group_columns,
    priced,
    row_columns,
    training_columns,
)
from sat_ray.report.leaderboard.groups import STRONG
from sat_ray.report.leaderboard.strong import OVERESTIMATED
from sat_ray.report.leaderboard.table1 import table1_columns, table1_rows
from sat_ray.report.leaderboard.tables import notes_of, power_text
from sat_ray.report.pages.parts import image, templates
from sat_ray.report.table import CODE, WORDS, Column, Table
from sat_ray.sweep.cost.spent import ESTIMATES
from sat_ray.threat import as_255ths

# Title and caption of the known figures, in the order of the page; others follow by name.
FIGURES = {
    "robust_against_curvature": (
        "Against curvature",
        "Does a softer activation make a more robust network? One line per family.",
    ),
    "gap_against_curvature": (
        "The gap against curvature",
        "How much PGD overestimates robustness, by activation.",
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
        "Robust accuracy on the validation split for every search trial of an activation with "
        "several α.",
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
        "What the attack changed, and what the model predicted.",
    ),
}
_APART = ("table1", "robustness_card")  # figures that are shown beside their tables
_ROLL_BACKS = (
    CONFIGURATION,
    Column("seed", "seed"),
    Column("epoch, step", lambda event: f"{event['epoch'] + 1}, {event['step']}"),
    Column("robust", "robust_accuracy", points),
    Column("best before", "best_robust_accuracy", points),
    Column(
        "back to epoch, step",
        lambda event: f"{event['back_to_epoch'] + 1}, {event['back_to_step']}",
    ),
    Column(
        "continued with",
        lambda event: (
            f"PGD-{event['attack_steps']}, steps of {as_255ths(event['attack_step_size'])}"
        ),
        kind=WORDS,
    ),
)


def render(
    board: Mapping[str, Any],
    *,
    figures: Mapping[str, bytes],
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
    """Render the leaderboard as one HTML page without external requests.

    figures: name → PNG; command: what reproduces the sweep;
    versions: package → version; notes: shown as they are; config: JSON-ready;
    cards: {"name", "card"} of each robustness card made, best candidate first;
    hashes: of what determined the results, by name; class_names: by label;
    events: the guard's roll-backs with "configuration" and "seed";
    digests: sha256 of each checkpoint's weights; pages: address of the tracker's pages, "" for
    no links; environment: where and when it was computed, by name.
    Everything is escaped. Raises ValueError for a figure that is no PNG.
    """
    shown = _figures(figures)
    # Only web addresses become links: "javascript:" must not.
    linked = pages if pages.startswith(("http://", "https://")) else ""
    folder = _shared_folder(board)
    places = _checkpoint_columns(folder, digests or {})
    tables = {
        **_tables(board, class_names, pages=linked),
        "roll_backs": Table(_ROLL_BACKS, events),
        "checkpoints": Table(places, board["rows"]),
    }
    page = templates().get_template("report.html.j2")
    return page.render(
        **_facts(board, config),
        board=board,
        tables=tables,
        overestimated=OVERESTIMATED,
        estimates=ESTIMATES,
        table1_figure=_named(shown, "table1"),
        card_figure=_named(shown, "robustness_card"),
        figures=[figure for figure in shown if figure["name"] not in _APART],
        cards=cards,
        command=command,
        versions=dict(sorted(versions.items())),
        environment=environment or {},
        notes=[*notes_of(board), *notes],
        hashes=hashes or {},
        folder=folder,
        pages=linked,
        config=json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )


def _facts(board: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page says in words and numbers about a board and its config, by name."""
    costs = board.get("cost")
    on_gpu = bool((config.get("resources") or {}).get("accelerator"))
    return {
        "seeds": seeds_text(board),
        "cut": cut_text(board),
        "power": power_text(board),
        "by_strong": board["measure"] == STRONG,
        "quoted": board["champion"]["row"][STRONG] is not None,
        "pgd": pgd_name(board),
        "costs": costs,
        "priced": bool(costs and priced(costs)),
        "held": "the GPUs it held" if on_gpu else "its worker processes (no GPU was used)",
        "scale": _scale(board),
        "total_seconds": sum(group["accelerator_seconds"] for group in board["groups"]),
        "guard_every": (config.get("training") or {}).get("guard_every", 0),
    }


def _tables(
    board: Mapping[str, Any], class_names: Sequence[str], *, pages: str
) -> dict[str, Table]:
    """Return the tables of accuracies, training time and costs, by name."""
    champion = board["champion"]
    slowest = sorted(board["groups"], key=lambda group: -group["accelerator_seconds"])

    def is_champion(group: Mapping[str, Any]) -> bool:
        return bool(group["configuration"] == champion["configuration"])

    def is_champion_row(row: Mapping[str, Any]) -> bool:
        return is_champion(row) and row["seed"] == champion["row"]["seed"]

    costs = board.get("cost")
    of_costs = {"stages": stage_table(costs), "trials": trial_table(costs)} if costs else {}
    return of_costs | {
        "groups": Table(group_columns(board), board["groups"], marked=is_champion),
        "differences": Table(difference_columns(board), compared_groups(board)),
        "table1": Table(table1_columns(board), table1_rows(board)),
        "rows": Table(row_columns(board, pages=pages), board["rows"], marked=is_champion_row),
        "training": Table(training_columns(), slowest),
        "classes": Table(class_columns(board, class_names), champion["per_class"]),
    }


def _shared_folder(board: Mapping[str, Any]) -> str:
    """Return the folder below which all checkpoints are; "" where there is none."""
    folders = [row["checkpoint"].split("/")[:-1] for row in board["rows"]]
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    return "/".join(names[0] for names in shared)


def _checkpoint_columns(folder: str, digests: Mapping[str, str]) -> list[Column]:
    """Return the columns of the checkpoints: their places below a folder and their digests."""

    def digest(row: Mapping[str, Any]) -> str | None:
        return digests.get(row["checkpoint"], "")[:16] or None

    def place(row: Mapping[str, Any]) -> str:
        return str(row["checkpoint"]).removeprefix(f"{folder}/" if folder else "")

    return [
        CONFIGURATION,
        Column("seed", "seed"),
        Column("checkpoint", place, kind=CODE),
        Column("sha256 of its weights", digest, kind=CODE),
    ]


def _figures(figures: Mapping[str, bytes]) -> list[dict[str, str | int]]:
    """Return {"name", "id", "title", "caption", "uri", "width", "height"} of each figure.

    Known figures come first, in the order of FIGURES.
    """
    order = [*(name for name in FIGURES if name in figures), *sorted(set(figures) - set(FIGURES))]
    shown: list[dict[str, str | int]] = []
    for name in order:
        title, caption = FIGURES.get(name, (name.replace("_", " "), ""))
        identifier = "figure-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        described = {"name": name, "id": identifier, "title": title, "caption": caption}
        shown.append({**described, **image(name, figures[name])})
    return shown


def _named(figures: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    return next((figure for figure in figures if figure["name"] == name), None)


def _scale(board: Mapping[str, Any]) -> dict[str, float]:
    """Return {"low", "high"} of the strip: all means ± standard deviations, with a margin."""
    known = [group[board["measure"]] for group in board["groups"]]
    ends = [
        one["mean"] + sign * (one["standard_deviation"] or 0.0)
        for one in known
        if one is not None
        for sign in (-1, 1)
    ]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return {"low": min(ends) - margin, "high": max(ends) + margin}
