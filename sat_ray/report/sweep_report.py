"""From committed records to leaderboard.json and .md, report.html, report.tex and figures/.

Writing the report may be repeated at any time.
"""

import importlib.metadata
import io
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sat_ray.attacks.cascade import describe_strong
from sat_ray.data.sources.registry import dataset_source
from sat_ray.evaluation.corruptions.summary import accuracies, added
from sat_ray.evaluation.low_precision.calibration import Calibration, summary_of
from sat_ray.storage.sealed import sealed
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.cost.budget import describe_search
from sat_ray.sweep.cost.spent import cost_summary, spent_by_stage, with_costs
from sat_ray.sweep.plan.evaluations import (
    corruption_tasks,
    evaluation_tasks,
    strong_on_validation,
    strong_tasks,
)
from sat_ray.sweep.records.renewed_lease import check_lease
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import EVALUATE, SEARCH, Dataset
from sat_ray.utils.serialization import content_hash, to_json

if TYPE_CHECKING:
    from sat_ray.report.leaderboard.rows import EvaluatedModel

VERSIONS = ("ray", "torch", "torchvision", "mlflow", "pyarrow")
CONFIG_HASH = "config_sha256"  # field of leaderboard.json
# Parts of the estimate of --dry-run, by stage.
ESTIMATED_PARTS = {
    "search": ("search",),
    "train": ("training",),
    "validate": ("validation",),
    "evaluate": ("evaluation",),
    "strong": ("strong evaluation",),
    "card": ("cards", "queries of cards"),
}


def read_outcomes(records: Records, path: str) -> pa.Table:
    """Read a model's merged outcomes."""
    return pq.read_table(io.BytesIO(records.storage.read(path)))


def strong_name(name: str) -> str:
    """Return the name under which a model's outcomes of the strong attacks are merged."""
    return f"strong/{name}"


def outcome_paths(config: SweepConfig, name: str) -> list[str]:
    """Return where a model's merged outcomes are: of PGD and, if any, of the strong attacks."""
    names = [name, strong_name(name)] if "strong" in config.evaluation.stages() else [name]
    return [f"outcomes/{one}.parquet" for one in names]


def write_report(
    sweep: Sweep,
    data: Dataset,
    models: Sequence[Record],
    cards: Sequence[Record],
    outcomes: Mapping[str, str],
    run_ids: Mapping[str, str],
) -> dict[str, Any]:
    """Write every file of the report and return the leaderboard.

    models: the training records; outcomes: path of each model's merged outcomes, by name;
    run_ids: MLflow run of each training record, by key.
    """
    from sat_ray.report.figures.leaderboard import pdf, png
    from sat_ray.report.leaderboard.tables import to_latex, to_markdown
    from sat_ray.report.pages.sweep_page import render
    from sat_ray.report.sweep_figures import sweep_figures

    records = sweep.records
    evaluated = _evaluated_models(sweep, data, models, outcomes, run_ids)
    board = _leaderboard(sweep, data, evaluated, models=models, cards=cards)
    weights = {model.checkpoint: model.sha256 for model in evaluated}
    card = card_of(cards, weights[board["champion"]["row"]["checkpoint"]])
    searched = records.all(SEARCH)
    drawn = sweep_figures(sweep.config, data, board, evaluated, card=card, searched=searched)
    figures = {name: png(figure) for name, figure in drawn.items()}
    check_lease(records.storage)
    for made in cards:
        card_file = f"cards/{made.payload['name']}.json"
        records.storage.write_json(card_file, sealed(made.payload["card"]))
    for name, figure in drawn.items():
        records.storage.write(f"figures/{name}.png", figures[name])
        records.storage.write(f"figures/{name}.pdf", pdf(figure))
    records.storage.write("leaderboard.md", to_markdown(board).encode())
    records.storage.write("report.tex", to_latex(board).encode())
    page = render(
        board,
        figures=figures,
        cards=[card.payload for card in cards],
        digests=weights,
        notes=[board["calibration"]] if board["calibration"] else [],
        **_background(sweep, data, models, evaluated),
    )
    records.storage.write("report.html", page.encode())
    # leaderboard.json is written last: where it exists, all other files exist.
    records.storage.write_json("leaderboard.json", sealed(board))
    return board


def _leaderboard(
    sweep: Sweep,
    data: Dataset,
    evaluated: "Sequence[EvaluatedModel]",
    *,
    models: Sequence[Record],
    cards: Sequence[Record],
) -> dict[str, Any]:
    """Return the leaderboard with costs, search and calibration."""
    from sat_ray.report.leaderboard.board import leaderboard

    config = sweep.config
    spec = config.evaluation_attacks()[0]
    verdicts = {card.inputs["weights"]: card.payload["card"]["verdict"] for card in cards}
    board = leaderboard(
        evaluated,
        sweep=sweep.name,
        dataset=config.data.dataset,
        threat_model=to_json(config.threat_model),
        attack={
            "name": spec.name,
            "steps": spec.steps,
            "step_size": spec.step_size,
            "restarts": spec.restarts,
        },
        strong_attack=strong_attack(config, data),
        verdicts={
            model.checkpoint: verdicts[model.sha256]
            for model in evaluated
            if model.sha256 in verdicts
        },
    )
    train_images = config.images_per_epoch(data.manifest["splits"]["train"])
    stages = spent_by_stage(config, sweep.records, train_images=train_images)
    cost = cost_summary(config, stages, estimated=_estimated(config, data))
    board = with_costs(board, config, stages) | {"cost": cost, CONFIG_HASH: config_hash(config)}
    if (searched := describe_search(config, sweep.records)) is not None:
        board["search"] = searched
    board["calibration"] = summary_of(_calibrations(sweep, data, models))
    return board


def _background(
    sweep: Sweep, data: Dataset, models: Sequence[Record], evaluated: "Sequence[EvaluatedModel]"
) -> dict[str, Any]:
    """Return what the page says besides the leaderboard: settings, versions, hashes, events."""
    from sat_ray.report.pages.origin import origin

    return {
        "command": shlex.join(sweep.command),
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS},
        "config": to_json(sweep.config),
        "hashes": _hashes(sweep.config, data, models),
        "class_names": data.manifest["class_names"],
        "events": [event for model in evaluated for event in _events(model)],
        "pages": sweep.pages,
        "environment": origin(_computed(sweep.records, models)),
    }


def card_of(cards: Sequence[Record], weights: str) -> dict[str, Any]:
    """Return the card of the model with these weights (sha256).

    A model that was trained again, to the same weights, keeps its card.
    """
    card: dict[str, Any] = next(
        card.payload["card"] for card in cards if card.inputs["weights"] == weights
    )
    return card


def strong_attack(config: SweepConfig, data: Dataset) -> dict[str, Any] | None:
    """Describe the strong attacks, before views are chosen; None in a sweep without them."""
    attacks = config.strong_attacks(len(data.manifest["class_names"]))
    return describe_strong(attacks, after=config.evaluation_attacks()[0].name) if attacks else None


def _calibrations(sweep: Sweep, data: Dataset, models: Sequence[Record]) -> list[Calibration]:
    """Return the calibrations of attacks with a low-precision surrogate.

    Every shard of a model holds the same, so the first that holds any is read: of the strong
    attacks those without survivors hold none.
    """
    if sweep.config.evaluation.gradient == "float32":
        return []
    found: list[Calibration] = []
    for model in models:
        for tasks_of in (evaluation_tasks, strong_tasks):
            tasks = tasks_of(sweep.config, data, model)
            shards = (sweep.records.find(task.stage, task.key) for task in tasks)
            measured = (shard.payload.get("calibrations", []) for shard in shards if shard)
            found += [Calibration.from_json(one) for one in next(filter(None, measured), [])]
    return found


def _estimated(config: SweepConfig, data: Dataset) -> dict[str, float]:
    """Return the accelerator-seconds that --dry-run expects of each stage; {} if unknown."""
    from sat_ray.sweep.cost.estimate import estimated_hours, passes_of

    counts = data.manifest["splits"]
    source = replace(
        dataset_source(config.data.dataset),
        images=sum(counts.values()),
        test=counts["test"],
        val=counts["val"],
    )
    hours = estimated_hours(config, source, passes_of(config, source))
    if not hours:
        return {}
    return {
        stage: 3600 * sum(hours[name] for name in names) for stage, names in ESTIMATED_PARTS.items()
    }


def _computed(records: Records, models: Sequence[Record]) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield the numerical environment and the time of every training and evaluation."""
    for record in itertools.chain(models, records.each(EVALUATE)):
        yield record.inputs.get("environment", {}), record.created


def _hashes(config: SweepConfig, data: Dataset, models: Sequence[Record]) -> dict[str, str]:
    """Return the hashes of what determined the results: config, images, code of training."""
    code = content_hash(
        sorted({(name, digest) for record in models for name, digest in record.code.items()})
    )
    return {"config": config_hash(config), "dataset": data.hash, "training code": code}


def config_hash(config: SweepConfig) -> str:
    """Return the hash of what determined the results of a sweep."""
    return content_hash(config.semantic())


def corruption_accuracies(
    sweep: Sweep, data: Dataset, model: Record
) -> dict[str, list[float]] | None:
    """Return a model's accuracy by kind of corruption and severity; None where not measured."""
    tasks = corruption_tasks(sweep.config, data, model)
    shards = [sweep.records.find(task.stage, task.key) for task in tasks]
    made = [shard.payload for shard in shards if shard is not None]
    if not made:
        return None
    counts = added([payload["correct"] for payload in made])
    return accuracies(counts, sum(payload["n"] for payload in made))


def _events(model: "EvaluatedModel") -> list[dict[str, Any]]:
    from sat_ray.report.leaderboard.rows import display_names

    named = {"configuration": display_names([model])[0], "seed": model.seed}
    return [named | dict(event) for event in model.events]


def _evaluated_models(
    sweep: Sweep,
    data: Dataset,
    models: Sequence[Record],
    outcomes: Mapping[str, str],
    run_ids: Mapping[str, str],
) -> "list[EvaluatedModel]":
    """Join the training records with their outcomes."""
    from sat_ray.report.leaderboard.rows import EvaluatedModel

    config = sweep.config
    records = sweep.records
    strong = strong_on_validation(config, data, models, records) or {}

    def joined(record: Record) -> EvaluatedModel:
        payload = record.payload
        name = payload["name"]
        configuration = SearchPoint.of(payload)
        strong_path = next(iter(outcome_paths(config, name)[1:]), None)
        return EvaluatedModel(
            model=config.model.name,
            activation=configuration.activation,
            alpha=configuration.alpha,
            attacker_activation=configuration.attacker_activation,
            attacker_alpha=configuration.attacker_alpha,
            seed=payload["seed"],
            val_robust_accuracy=payload["val_robust_accuracy"],
            checkpoint=records.storage.located(payload["path"]),
            outcomes=records.storage.full(outcomes[name]),
            mlflow_run_id=run_ids.get(record.key),
            accelerator_seconds=payload["accelerator_seconds"],
            train_images_per_second=payload["train_images_per_second"],
            history=tuple(payload["history"]),
            table=read_outcomes(records, outcomes[name]),
            events=tuple(payload.get("guard_events", [])),
            sha256=payload["sha256"],
            val_strong_robust_accuracy=strong.get(name),
            strong_table=None if strong_path is None else read_outcomes(records, strong_path),
            strong_outcomes=None if strong_path is None else records.storage.full(strong_path),
            corruptions=corruption_accuracies(sweep, data, record),
        )

    return [joined(record) for record in models]
