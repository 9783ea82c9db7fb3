"""Cards on their runs, and the winner of a sweep as a version of a registered model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sat_ray.evaluation.card import PASS
from sat_ray.evaluation.card.checks import ABOVE_CHANCE
from sat_ray.integrations.mlflow.projection.registry import (
    ALIAS,
    Contender,
    compared_threat,
    objection,
    registered_name,
)
from sat_ray.integrations.mlflow.projection.runs import Runs, finalist_name
from sat_ray.report.sweep_report import card_of, strong_attack
from sat_ray.sweep.plan.evaluations import strong_on_validation
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TRAIN
from sat_ray.utils.serialization import json_bytes

ACCEPTED = "sat_ray.flag_accepted_because"


def register(
    runs: Runs, board: Mapping[str, Any], cards: Sequence[Record], *, override: str
) -> str:
    """Show the cards on their runs and register the winner; return a sentence for people.

    The winner's card must say PASS, or `override` why it is accepted all the same; a model that is
    no better than chance is never registered. It becomes `champion` of its data, architecture and
    threat model where it beats the version that is (see `registry`).
    """
    best = board["champion"]["row"]
    name = board["champion"]["configuration"]
    storage = runs.sweep.storage
    records = runs.sweep.records.all(TRAIN)
    trained = {storage.located(record.payload["path"]): record for record in records}
    champion = trained[best["checkpoint"]]
    for made in cards:
        _write_card(runs, _carded(made, records), made.payload["card"])
    card = card_of(cards, champion.payload["sha256"])
    if refused := _refusal(card, name=name, override=override):
        return refused
    run_id, uri = runs.attach_model(champion)
    if not uri:
        return f"no champion: {runs.not_exported}; its weights are in {best['checkpoint']}"
    seeds = [trained[row["checkpoint"]] for row in board["rows"] if row["configuration"] == name]
    contender = _contender(runs, seeds)
    tags = _version_tags(runs, best, card, name=name, override=override) | contender.tags
    return _register_version(runs, uri, run_id, contender, card, tags=tags, name=name)


def _register_version(
    runs: Runs,
    uri: str,
    run_id: str,
    contender: Contender,
    card: Mapping[str, Any],
    *,
    tags: Mapping[str, str],
    name: str,
) -> str:
    """Register a model, as champion unless the present one is better; return a sentence."""
    from sat_ray.report.pages.mlflow_notes import card_note

    model = registered_name(runs.sweep.config, runs.dataset())
    present = runs.tracker.holder(model, alias=ALIAS)
    against = ""
    if present is not None and present.source != uri:
        against = objection(contender, present.tags)
    version = runs.tracker.register(
        uri,
        name=model,
        alias=None if against else ALIAS,
        tags=tags,
        run_id=run_id,
        note=card_note(card, name=name),
    )
    override = tags.get(ACCEPTED)
    accepted = "" if override is None else f", accepted because: {override}"
    said = (
        f"version {version} of model {model} in MLflow "
        f"(robustness card: {card['verdict']}{accepted})"
    )
    if against:
        assert present is not None
        return (
            f"registered without the alias {ALIAS}: {said}; "
            f"version {present.version} keeps it: {against}"
        )
    return f"{ALIAS}: {said}; load it as models:/{model}@{ALIAS}"


def _contender(runs: Runs, seeds: Sequence[Record]) -> Contender:
    """Return what the registry compares of a configuration. seeds: its trained models."""
    config = runs.sweep.config
    data = runs.dataset()
    strong = strong_on_validation(config, data, seeds, runs.records) or {}
    numbers = [strong.get(one.payload["name"], one.payload["val_robust_accuracy"]) for one in seeds]
    attack = strong_attack(config, data)
    if attack is None:
        classes = len(data.manifest["class_names"])
        training = config.training.validation_attacks(config.threat_model, num_classes=classes)
        names = [spec.name for spec in training]
    else:
        names = [str(attack["after"]), str(attack["name"])]
    return Contender(
        data=data.hash,
        threat_model=compared_threat(config.threat_model),
        number=math.fsum(numbers) / len(numbers),
        measured=" + ".join(names),
    )


def _version_tags(
    runs: Runs,
    best: Mapping[str, Any],
    card: Mapping[str, Any],
    *,
    name: str,
    override: str,
) -> dict[str, str]:
    """Return the tags of a registered version.

    `sat_ray.robust_accuracy` is the figure to quote, the strong one where there is one.
    """
    measured = runs.sweep.config.evaluation_attacks()[0].name
    quoted = best["robust_accuracy"]
    attack = strong_attack(runs.sweep.config, runs.dataset())
    if attack is not None:
        measured = f"{measured} + {attack['name']}"
        quoted = best["strong_robust_accuracy"]
    tags = {
        "sat_ray.robustness_card": card["verdict"],
        "sat_ray.sweep": runs.sweep.name,
        "sat_ray.configuration": name,
        "sat_ray.robust_accuracy": f"{quoted:.4f}",
        "sat_ray.robust_accuracy_attack": measured,
        "sat_ray.pgd_robust_accuracy": f"{best['robust_accuracy']:.4f}",
    }
    if card["verdict"] == PASS:
        return tags
    reasons = "; ".join(card["reasons"])[:500]
    return tags | {ACCEPTED: override, "sat_ray.flagged_because": reasons}


def _carded(made: Record, records: Sequence[Record]) -> Record:
    """Return the training that a card is about, of those with the same weights the named one."""
    twins = [record for record in records if record.payload["sha256"] == made.inputs["weights"]]
    return max(twins, key=lambda record: bool(record.payload["name"] == made.payload["name"]))


def _write_card(runs: Runs, record: Record, card: Mapping[str, Any]) -> None:
    from sat_ray.report.figures.card import card_figure
    from sat_ray.report.figures.leaderboard import png
    from sat_ray.report.pages.mlflow_notes import card_note

    name = finalist_name(SearchPoint.of(record.payload), record.payload["seed"])
    run_id = runs.finalist(record, tags={"sat_ray.robustness_card": card["verdict"]})
    figure = png(card_figure(card, name=name))
    runs.tracker.artifact(run_id, "robustness_card.json", json_bytes(card))
    runs.tracker.artifact(run_id, "figures/robustness_card.png", figure)
    runs.tracker.note(run_id, card_note(card, name=name))


def _refusal(card: Mapping[str, Any], *, name: str, override: str) -> str:
    """Return why a model is not registered at all; "" where it may be."""
    for check in card["checks"]:
        if check["name"] == ABOVE_CHANCE and not check["passed"]:
            return (
                f"no champion: {name} is no better than chance ({check['found']}); "
                "such a model is never registered"
            )
    if card["verdict"] != PASS and not override:
        reasons = "; ".join(card["reasons"])
        return (
            f"no champion: the robustness card of {name} says FLAG ({reasons}). "
            "--accept-flagged REASON registers it all the same"
        )
    return ""
