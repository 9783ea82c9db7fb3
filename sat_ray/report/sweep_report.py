"""From committed records to what people look at: leaderboard.json and .md, figures/*.png, report.html. May be repeated at any time."""

import importlib.metadata
import io
import itertools
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sat_ray.attacks import pgd
from sat_ray.attacks.cascade import describe_strong
from sat_ray.checkpoint import load_model
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards.dataset import labels, read_rows
from sat_ray.data.sources.registry import dataset_source
from sat_ray.evaluation.low_precision.calibration import Calibration, summary_of
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.budget import describe_search
from sat_ray.sweep.cost.spent import cost_summary, spent_by_stage, with_costs
from sat_ray.sweep.plan import evaluation_tasks, strong_on_validation, strong_tasks
from sat_ray.sweep.records.renewed_lease import check_lease
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import EVALUATE, SEARCH, Dataset
from sat_ray.utils.randomness import Randomness
from sat_ray.utils.serialization import content_hash, to_json

VERSIONS = ("ray", "torch", "torchvision", "mlflow", "pyarrow")
EXAMPLES = 8


def read_outcomes(records: Records, path: str) -> pa.Table:
    """Read a model's merged outcomes."""
    return pq.read_table(io.BytesIO(records.storage.read(path)))


def strong_name(name: str) -> str:
    """Return the name under which a model's outcomes of the strong attacks are merged."""
    return f"strong/{name}"


def outcome_paths(config: SweepConfig, name: str) -> list[str]:
    """Return where a model's merged outcomes are: those of PGD and, in a sweep that has any, those of the strong attacks."""
    names = [name] if config.evaluation.strong == "none" else [name, strong_name(name)]
    return [f"outcomes/{one}.parquet" for one in names]


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that runs this sweep, fit for a shell."""
    return shlex.join(["python", "pipelines/sweep.py", *arguments])


def write_report(
    config: SweepConfig,
    name: str,
    records: Records,
    data: Dataset,
    models: Sequence[Record],
    cards: Sequence[Record],
    outcomes: dict[str, str],
    run_ids: dict[str, str],
    *,
    command: Sequence[str],
    pages: str,
) -> dict[str, Any]:
    """Write every file of the report and return the leaderboard. run_ids: MLflow run of each training record, by key."""
    from sat_ray.report.leaderboard.board import leaderboard, to_markdown
    from sat_ray.report.pages.origin import origin
    from sat_ray.report.pages.sweep_page import render

    strong = strong_on_validation(config, data, models, records) or {}
    evaluated = [
        evaluated_model(config, records, record, outcomes, run_ids, strong) for record in models
    ]
    spec = config.evaluation_attacks()[0]
    verdicts = {card.inputs["weights"]: card.payload["card"]["verdict"] for card in cards}
    board = leaderboard(
        evaluated,
        sweep=name,
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
    stages = spent_by_stage(config, records, train_images=data.manifest["splits"]["train"])
    board = with_costs(board, config, stages) | {
        "cost": cost_summary(config, stages, estimated=_estimated(config, data))
    }
    if (searched := describe_search(config, records)) is not None:
        board["search"] = searched
    board["calibration"] = summary_of(_calibrations(config, records, data, models))
    weights = {model.checkpoint: model.sha256 for model in evaluated}
    card = card_of(cards, weights[board["champion"]["row"]["checkpoint"]])
    figures = _figures(config, records, data, board, evaluated, card)
    check_lease(records.storage)
    for made in cards:
        records.storage.write_json(f"cards/{made.payload['name']}.json", made.payload["card"])
    for figure, png in figures.items():
        records.storage.write(f"figures/{figure}.png", png)
    records.storage.write("leaderboard.md", to_markdown(board).encode())
    page = render(
        board,
        figures=figures,
        command=command_line(command),
        versions={package: importlib.metadata.version(package) for package in VERSIONS},
        notes=[board["calibration"]] if board["calibration"] else [],
        cards=[card.payload for card in cards],
        config=to_json(config),
        hashes=_hashes(config, data, models),
        class_names=data.manifest["class_names"],
        events=[event for model in evaluated for event in _events(model)],
        digests=weights,
        pages=pages,
        environment=origin(_computed(records, models)),
    )
    records.storage.write("report.html", page.encode())
    records.storage.write_json("leaderboard.json", board)  # last: whoever finds it finds the rest
    return board


def card_of(cards: Sequence[Record], weights: str) -> dict[str, Any]:
    """Return the card of the model with these weights: a model that was trained again, to the same weights, keeps its card."""
    card: dict[str, Any] = next(
        card.payload["card"] for card in cards if card.inputs["weights"] == weights
    )
    return card


def strong_attack(config: SweepConfig, data: Dataset) -> dict[str, Any] | None:
    """Describe the attacks behind the strong verdict, before views are chosen; None in a sweep without them."""
    attacks = config.strong_attacks(len(data.manifest["class_names"]))
    return describe_strong(attacks, after=config.evaluation_attacks()[0].name) if attacks else None


def _calibrations(
    config: SweepConfig,
    records: Records,
    data: Dataset,
    models: Sequence[Record],
) -> list[Calibration]:
    """Return what was measured of attacks on a fast copy.

    Every shard of a model holds the same, so the first that holds any is read: of the strong attacks those without survivors hold none.
    """
    if config.evaluation.gradient == "float32":
        return []
    found: list[Calibration] = []
    for model in models:
        for tasks in (evaluation_tasks(config, data, model), strong_tasks(config, data, model)):
            shards = (records.find(task.stage, task.key) for task in tasks)
            measured = (
                shard.payload.get("calibrations", []) for shard in shards if shard is not None
            )
            found += [Calibration.from_json(one) for one in next(filter(None, measured), [])]
    return found


def _estimated(config: SweepConfig, data: Dataset) -> dict[str, float]:
    """Return the accelerator-seconds that --dry-run expects of each stage, for the images that there are; {} without a measured rate."""
    from sat_ray.sweep.cost.estimate import estimated_hours, passes_of

    counts = data.manifest["splits"]
    source = replace(
        dataset_source(config.data.dataset),
        images=sum(counts.values()),
        test=counts["test"],
        val=counts["val"],
    )
    hours = estimated_hours(config, source, passes_of(config, source))
    parts = {
        "search": ("search",),
        "train": ("training",),
        "validate": ("validation",),
        "evaluate": ("evaluation",),
        "strong": ("strong evaluation",),
        "card": ("cards", "queries of cards"),
    }
    return (
        {stage: 3600 * sum(hours[name] for name in names) for stage, names in parts.items()}
        if hours
        else {}
    )


def _computed(records: Records, models: Sequence[Record]) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield the numerical environment and the time of every training and evaluation."""
    for record in itertools.chain(models, records.each(EVALUATE)):
        yield record.inputs.get("environment", {}), record.created


def _hashes(config: SweepConfig, data: Dataset, models: Sequence[Record]) -> dict[str, str]:
    """Return what determined the results: the config's meaning, the images, the code that trained, module by module."""
    code = content_hash(
        sorted({(name, digest) for record in models for name, digest in record.code.items()})
    )
    return {"config": content_hash(config.semantic()), "dataset": data.hash, "training code": code}


def _events(model: Any) -> list[dict[str, Any]]:
    from sat_ray.report.leaderboard.rows import display_names

    return [
        {"configuration": display_names([model])[0], "seed": model.seed} | dict(event)
        for event in model.events
    ]


def evaluated_model(
    config: SweepConfig,
    records: Records,
    record: Record,
    outcomes: dict[str, str],
    run_ids: dict[str, str],
    strong: Mapping[str, float],
) -> Any:
    """Join a training record with its outcomes, as the report wants it. strong: of `sat_ray.sweep.plan.strong_on_validation`."""
    from sat_ray.report.leaderboard.rows import EvaluatedModel

    payload = record.payload
    configuration = SearchPoint.of(payload)
    strong_path = next(iter(outcome_paths(config, payload["name"])[1:]), None)
    return EvaluatedModel(
        model=config.model.name,
        activation=configuration.activation,
        alpha=configuration.alpha,
        attacker_activation=configuration.attacker_activation,
        attacker_alpha=configuration.attacker_alpha,
        seed=payload["seed"],
        val_robust_accuracy=payload["val_robust_accuracy"],
        checkpoint=records.storage.located(payload["path"]),
        outcomes=records.storage.full(outcomes[payload["name"]]),
        mlflow_run_id=run_ids.get(record.key),
        accelerator_seconds=payload["accelerator_seconds"],
        train_images_per_second=payload["train_images_per_second"],
        history=tuple(payload["history"]),
        table=read_outcomes(records, outcomes[payload["name"]]),
        events=tuple(payload.get("guard_events", [])),
        sha256=payload["sha256"],
        val_strong_robust_accuracy=strong.get(payload["name"]),
        strong_table=None if strong_path is None else read_outcomes(records, strong_path),
        strong_outcomes=None if strong_path is None else records.storage.full(strong_path),
    )


def _figures(
    config: SweepConfig,
    records: Records,
    data: Dataset,
    board: dict[str, Any],
    evaluated: list[Any],
    card: dict[str, Any],
) -> dict[str, bytes]:
    from sat_ray.report.figures import curves
    from sat_ray.report.figures import leaderboard as figures
    from sat_ray.report.figures.card import card_figure
    from sat_ray.report.figures.curvature import curvature_figures
    from sat_ray.report.figures.steps import accuracy_against_steps
    from sat_ray.report.formatting import setting_text

    steps = max(spec.steps for spec in config.evaluation_attacks())
    drawn = {
        "clean_against_robust": figures.clean_against_robust(board),
        "table1": figures.table1(board),
        "training_curves": curves.training_curves(evaluated),
        "adversarial_examples": _examples(config, data, board),
        "accuracy_against_steps": accuracy_against_steps(
            evaluated, steps=steps, subtitle=setting_text(board, with_strong=False)
        ),
        "robustness_card": card_figure(card, name=board["champion"]["configuration"]),
    }
    trials = trials_of(records.all(SEARCH))
    drawn |= curvature_figures(board, trials)
    if curves.several_alphas(trials):
        drawn["alpha_response"] = curves.alpha_response(trials)
    pngs = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in drawn.items():
            pngs[name] = figures.save(figure, Path(folder) / f"{name}.png").read_bytes()
    return pngs


def trials_of(found: Sequence[Record]) -> list[dict[str, Any]]:
    """Return search records as points of the alpha response, the mean over seeds where there are several."""
    same: dict[tuple[SearchPoint, int], list[float]] = {}
    for record in found:
        place = (SearchPoint.of(record.payload), record.payload["until"])
        same.setdefault(place, []).append(record.payload["last_val"][0])
    return [
        one.to_json() | {"val_robust_accuracy": math.fsum(values) / len(values), "epochs": until}
        for (one, until), values in same.items()
    ]


def _examples(config: SweepConfig, data: Dataset, board: dict[str, Any]) -> Any:
    """Draw test images with what the full attack makes of them against the champion, once per class first."""
    from sat_ray.report.figures.examples import adversarial_examples

    model = load_model(board["champion"]["row"]["checkpoint"])
    storage = Storage(data.uri)
    y = labels(storage, "test")
    rows, by_class = torch.tensor(
        [int((y == label).nonzero()[0]) for label in sorted(set(y.tolist()))[:EXAMPLES]]
    ).sort()
    chosen = read_rows(storage, "test", rows).take(by_class.argsort())
    x = to_pixels(chosen.images)
    spec = config.evaluation_attacks()[0]
    rng = Randomness(config.evaluation.seed, chosen.image_ids)
    assert spec.step_size is not None
    x_adv = pgd(
        model,
        x,
        chosen.labels,
        threat_model=config.threat_model,
        step_size=spec.step_size,
        steps=spec.steps,
        rng=rng,
    )
    with torch.no_grad():
        clean, adversarial = model(x).argmax(dim=1), model(x_adv).argmax(dim=1)
    return adversarial_examples(
        x.numpy(),
        x_adv.numpy(),
        chosen.labels.numpy(),
        clean.numpy(),
        adversarial.numpy(),
        data.manifest["class_names"],
        f"{config.threat_model}, {spec.name}",
    )
