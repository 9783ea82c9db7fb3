"""The figures of a sweep's report, from its records and its leaderboard."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from sat_ray.attacks import pgd
from sat_ray.checkpoint import load_model
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards.reading import labels, read_rows
from sat_ray.report.figures.card import card_figure
from sat_ray.report.figures.curvature import curvature_figures
from sat_ray.report.figures.curves import alpha_response, several_alphas, training_curves
from sat_ray.report.figures.examples import adversarial_examples
from sat_ray.report.figures.leaderboard import clean_against_robust, table1
from sat_ray.report.figures.steps import accuracy_against_steps
from sat_ray.report.formatting import setting_text
from sat_ray.report.leaderboard.rows import EvaluatedModel
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import Dataset
from sat_ray.utils.randomness import Randomness

EXAMPLES = 8


def sweep_figures(
    config: SweepConfig,
    data: Dataset,
    board: dict[str, Any],
    evaluated: Sequence[EvaluatedModel],
    *,
    card: dict[str, Any],
    searched: Sequence[Record],
) -> dict[str, Figure]:
    """Draw every figure of the report, by name.

    card: of the champion; searched: the records of the search.
    """
    steps = max(spec.steps for spec in config.evaluation_attacks())
    subtitle = setting_text(board, with_strong=False)
    trials = trials_of(searched)
    drawn = {
        "clean_against_robust": clean_against_robust(board),
        "table1": table1(board),
        "training_curves": training_curves(evaluated),
        "adversarial_examples": _examples(config, data, board, evaluated),
        "accuracy_against_steps": accuracy_against_steps(evaluated, steps=steps, subtitle=subtitle),
        "robustness_card": card_figure(card, name=board["champion"]["configuration"]),
        **curvature_figures(board, trials),
    }
    if several_alphas(trials):
        drawn["alpha_response"] = alpha_response(trials)
    return drawn


def trials_of(searched: Sequence[Record]) -> list[dict[str, Any]]:
    """Return search records as points of the alpha response, the mean over seeds."""
    same: dict[tuple[SearchPoint, int], list[float]] = {}
    for record in searched:
        place = (SearchPoint.of(record.payload), record.payload["until"])
        same.setdefault(place, []).append(record.payload["last_val"][0])
    return [
        one.to_json()
        | {
            "val_robust_accuracy": math.fsum(values) / len(values),
            "epochs": until,
            "seeds": len(values),
        }
        for (one, until), values in same.items()
    ]


def _examples(
    config: SweepConfig,
    data: Dataset,
    board: dict[str, Any],
    evaluated: Sequence[EvaluatedModel],
) -> Figure:
    """Draw one test image of each class with the full attack's result against the champion."""
    weights = {model.checkpoint: model.sha256 for model in evaluated}
    checkpoint = board["champion"]["row"]["checkpoint"]
    model = load_model(checkpoint, expected_sha256=weights[checkpoint])
    storage = Storage(data.uri)
    y = labels(storage, "test")
    first = [int((y == label).nonzero()[0]) for label in sorted(set(y.tolist()))[:EXAMPLES]]
    rows, by_class = torch.tensor(first).sort()
    chosen = read_rows(storage, "test", rows).take(by_class.argsort())
    x = to_pixels(chosen.images)
    spec = config.evaluation_attacks()[0]
    assert spec.step_size is not None
    x_adv = pgd(
        model,
        x,
        chosen.labels,
        threat_model=config.threat_model,
        step_size=spec.step_size,
        steps=spec.steps,
        rng=Randomness(config.evaluation.seed, chosen.image_ids),
    )
    with torch.no_grad():
        clean = model(x).argmax(dim=1)
        adversarial = model(x_adv).argmax(dim=1)
    return adversarial_examples(
        x.numpy(),
        x_adv.numpy(),
        chosen.labels.numpy(),
        clean.numpy(),
        adversarial.numpy(),
        data.manifest["class_names"],
        f"{config.threat_model}, {spec.name}",
    )
