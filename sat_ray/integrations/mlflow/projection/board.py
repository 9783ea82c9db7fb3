"""A leaderboard on the runs of a sweep: what Compare shows, and the report on the sweep's run."""

import shlex
from collections.abc import Mapping
from typing import Any

from sat_ray.integrations.mlflow.links import compare_link, table_link, view_of
from sat_ray.integrations.mlflow.metrics import (
    cost_metrics,
    curvature_metrics,
    group_metrics,
    sweep_cost_metrics,
)
from sat_ray.integrations.mlflow.projection.runs import Runs, now
from sat_ray.sweep.cost.spent import longest_trials
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN
from sat_ray.utils.serialization import content_hash

COMPARED = 30  # configurations in the address of one page, best first: browsers cut longer ones
REPORT = ("leaderboard.json", "leaderboard.md", "report.html", "report.tex")
COMPARE = "compare the configurations"
ALPHA_FIGURE = "figures/alpha_response.png"


def close(runs: Runs, board: Mapping[str, Any]) -> None:
    """Show a leaderboard on the runs of its configurations and of the sweep, and end them."""
    for group in board["groups"]:
        _write_configuration(runs, group, board)
    _retire(runs, board)
    searched = board.get("search")
    runs.whole({} if searched is None else {"sat_ray.search": searched["sentence"]})
    _close_search(runs, board)
    _attach_report(runs, board)
    best = board["champion"]["row"]
    quoted = ("strong_robust_accuracy", "robust_accuracy", "clean_accuracy")
    shown = {f"champion/{name}": best[name] for name in quoted if best[name] is not None}
    shown |= sweep_cost_metrics(board["cost"])
    content = content_hash([board["rows"], shown])
    points = [] if runs.tracker.is_complete(runs.parent, content=content) else now(shown)
    runs.uses(runs.parent, "train", "val", "test")
    runs.tracker.complete(runs.parent, content=content, points=points)


def links(runs: Runs, board: Mapping[str, Any], *, pages: str) -> dict[str, str]:
    """Return the addresses that show the configurations of a board, by what they show."""
    experiment = runs.tracker.experiment_id
    view = f"sat_ray-{runs.sweep.name}"
    compared = [runs.configuration(_of_group(group)) for group in board["groups"]]
    runs.tracker.share(view, view_of(runs.sweep.name))
    return {
        COMPARE: compare_link(pages, experiment, compared[:COMPARED]),
        "all configurations": table_link(pages, experiment, view),
    }


def _attach_report(runs: Runs, board: Mapping[str, Any]) -> None:
    """Attach the report to the sweep's run and describe the run by its first figures."""
    from sat_ray.report.pages.mlflow_notes import NOTED, sweep_note

    storage = runs.sweep.storage
    for path in (*REPORT, *(f"figures/{name}" for name in storage.names("figures"))):
        runs.tracker.artifact(runs.parent, path, storage.read(path))
    served = f"get-artifact?run_uuid={runs.parent}&path=figures%2F"  # where MLflow serves artifacts
    figures = {
        title: f"{served}{name}.png"
        for name, title in NOTED.items()
        if storage.exists(f"figures/{name}.png")
    }
    note = sweep_note(
        board,
        command=shlex.join(runs.sweep.command),
        figures=figures,
        compare=links(runs, board, pages="")[COMPARE].lstrip("/"),
    )
    runs.tracker.note(runs.parent, note)


def _retire(runs: Runs, board: Mapping[str, Any]) -> None:
    """Mark the configurations that were finalists before a larger budget found better ones."""
    shown = {group["configuration"] for group in board["groups"]}
    tags = {
        "sat_ray.chosen_by_validation": "no",
        "sat_ray.against_relu": "not on the leaderboard",
    }
    trained = (SearchPoint.of(record.payload) for record in runs.records.all(TRAIN))
    for one in dict.fromkeys(trained):
        if one.name not in shown:
            runs.configuration(one, tags=tags)


def _close_search(runs: Runs, board: Mapping[str, Any]) -> None:
    """Show on the run of the search what it took and found."""
    trials = longest_trials(runs.records)
    took = next(stage for stage in board["cost"]["stages"] if stage["name"] == "search")
    searched = board.get("search")
    shown = {"trials": float(len(trials))} | cost_metrics(took)
    run_id = runs.search()
    content = content_hash([[record.key for record in trials], shown, searched])
    if runs.tracker.is_complete(run_id, content=content):
        return
    storage = runs.sweep.storage
    if storage.exists(ALPHA_FIGURE):
        runs.tracker.artifact(run_id, ALPHA_FIGURE, storage.read(ALPHA_FIGURE))
    if searched is not None:
        runs.tracker.note(run_id, searched["sentence"])
    runs.tracker.complete(run_id, content=content, points=now(shown))


def _write_configuration(runs: Runs, group: Mapping[str, Any], board: Mapping[str, Any]) -> None:
    """Show what the seeds of a configuration say together."""
    from sat_ray.report.formatting import verdict_text
    from sat_ray.report.pages.mlflow_notes import configuration_note

    configuration = _of_group(group)
    chosen = "yes" if group["configuration"] == board["champion"]["configuration"] else "no"
    tags = {"sat_ray.against_relu": verdict_text(group), "sat_ray.chosen_by_validation": chosen}
    run_id = runs.configuration(configuration, tags=tags)
    content = content_hash([group, chosen])
    if runs.tracker.is_complete(run_id, content=content):
        return
    figure = _training_figure(runs, configuration)
    runs.tracker.artifact(run_id, "figures/training.png", figure)
    runs.tracker.note(run_id, configuration_note(group, board=board))
    runs.uses(run_id, "train", "val", "test")
    metrics = group_metrics(group) | curvature_metrics(configuration)
    runs.tracker.complete(run_id, content=content, points=now(metrics))


def _training_figure(runs: Runs, configuration: SearchPoint) -> bytes:
    """Draw the trainings of a configuration, one curve for each seed."""
    from sat_ray.report.figures.leaderboard import png
    from sat_ray.report.figures.seed_curves import seed_curves

    seeds = {
        one.payload["seed"]: one.payload
        for one in runs.records.all(TRAIN)
        if SearchPoint.of(one.payload) == configuration
    }
    figure = seed_curves(
        configuration.name,
        {seed: payload["history"] for seed, payload in seeds.items()},
        events={seed: payload.get("guard_events", []) for seed, payload in seeds.items()},
    )
    return png(figure)


def _of_group(group: Mapping[str, Any]) -> SearchPoint:
    return SearchPoint(**{field: group[field] for field in SearchPoint.__dataclass_fields__})
