"""The robustness card of a model made elsewhere: one Ray task, one record, card.json."""

from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from sat_ray.attacks import AttackSpec
from sat_ray.evaluation.card import CardSettings, robustness_card, silent
from sat_ray.evaluation.external.validation import naming_model
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.external.subject import Subject, variants_of
from sat_ray.integrations.command_line.external.tasks import follow, on_ray
from sat_ray.report.console import Reporter
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import images_of, model_of, rows_of
from sat_ray.sweep.records.store import Record, Records, record_key
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import CARD, EvaluationTask
from sat_ray.utils.serialization import to_json
from sat_ray.utils.worker_process import set_up_worker


def write_card(
    given: ExternalOptions,
    subject: Subject,
    task: EvaluationTask,
    storage: Storage,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """Compute the robustness card as a Ray task, unless it is committed; write and return it.

    None where the options do not want it and no earlier command made it.
    """
    records = Records(storage)
    record = records.find(CARD, card_key(given, subject, task))
    if record is None and not given.card:
        return None
    if record is None:
        record = _compute(given, subject, task, records, reporter)
    card: dict[str, Any] = record.payload["card"]
    storage.write_json("card.json", card)
    reporter.say(f"robustness card: {card['verdict']}; {storage.full('card.json')}")
    for reason in card["reasons"]:
        reporter.say(f"  {reason}")
    return card


def _compute(
    given: ExternalOptions,
    subject: Subject,
    task: EvaluationTask,
    records: Records,
    reporter: Reporter,
) -> Record:
    """Compute the card as one Ray task and commit it."""
    from sat_ray.integrations.ray.tasks import stage_task

    inputs = card_inputs(given, subject, task)
    n = inputs["images"]
    reporter.say(f"robustness card: {n:,} images")
    started = perf_counter()
    with on_ray(given, reporter):
        whole = replace(task, first=0, last=n, sample=n, shuffled=False)
        work = (card_of, whole, given.examined(), subject.configuration)
        ref = stage_task(*work, name="card", resources=given.resources.evaluation())
        card = follow(ref, reporter.stage("card", 1), done=lambda: (0, ""))
    return records.commit(
        CARD,
        card_key(given, subject, task),
        inputs=inputs,
        payload={"name": task.name, "card": card},
        seconds=perf_counter() - started,
    )


def card_key(given: ExternalOptions, subject: Subject, task: EvaluationTask) -> str:
    """Return the key of the card's record."""
    return record_key(CARD, card_inputs(given, subject, task))


def card_inputs(given: ExternalOptions, subject: Subject, task: EvaluationTask) -> dict[str, Any]:
    """Return everything that determines the card."""
    settings = CardSettings()
    reordered = {"label_order": list(task.label_order)} if task.label_order else {}
    return reordered | {
        "weights": task.checkpoint_sha256,
        "attack": given.examined().to_json(),
        "configuration": None if subject.configuration is None else subject.configuration.to_json(),
        "settings": to_json(settings),
        "split": task.split,
        "images": min(settings.images, subject.n),
        "seed": task.seed,
        "slots": task.slots,
        "dataset": task.dataset.hash,
        "environment": task.environment,
    }


def card_of(
    task: EvaluationTask, attack: AttackSpec, configuration: SearchPoint | None
) -> dict[str, Any]:
    """Compute the card of a task's model on the task's images, where the task runs."""
    set_up_worker(threads=int(task.environment["threads"]))
    split = images_of(task, rows_of(task))
    variants = partial(variants_of, configuration)
    with naming_model(task.checkpoint):
        return robustness_card(
            model_of(task),
            split,
            attack=attack,
            variants=variants,
            seed=task.seed,
            slots=task.slots,
            on_progress=silent,
        )
