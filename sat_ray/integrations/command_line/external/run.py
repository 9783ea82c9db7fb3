"""Evaluate a model made elsewhere: exact robust accuracy with its interval, sharded over Ray."""

import importlib.metadata
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sat_ray.data.class_names import below_chance
from sat_ray.data.shards.reading import image_ids
from sat_ray.evaluation.intervals import anytime_interval, wilson_interval
from sat_ray.evaluation.low_precision.calibration import Calibration
from sat_ray.integrations.command_line.checks.code_changes import settle_code_changes
from sat_ray.integrations.command_line.checks.preflight import check_machine, slow_here
from sat_ray.integrations.command_line.checks.sweep_folder import (
    check_not_a_file,
    folder_name,
    storage_root,
)
from sat_ray.integrations.command_line.external.card import card_key, write_card
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.integrations.command_line.external.robustbench import check_board, write_submission
from sat_ray.integrations.command_line.external.subject import (
    Subject,
    identify,
    open_subject,
    staged,
)
from sat_ray.integrations.command_line.external.tasks import (
    environment_of,
    records_of,
    run_tasks,
    tasks_of,
)
from sat_ray.integrations.ray.local.session_folders import session_folder
from sat_ray.report.console import Reporter
from sat_ray.report.evaluation_summary import Interval, attack_table, claim, summary
from sat_ray.report.table import terminal_table
from sat_ray.storage.preflight import check_readable, check_writable, nothing_left
from sat_ray.storage.sealed import read_perhaps_sealed, sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config.stored import CONFIG
from sat_ray.sweep.execute.evaluation import sampled_rows
from sat_ray.sweep.records.lease import driver_lease
from sat_ray.sweep.records.leftovers import remove_leftovers, supersede_without_outcomes
from sat_ray.sweep.records.merge_outcomes import merge_outcomes
from sat_ray.sweep.records.store import Record, Records
from sat_ray.sweep.tasks import CARD, EVALUATE, EvaluationTask
from sat_ray.utils.import_string import confirm
from sat_ray.utils.names import printable
from sat_ray.utils.serialization import to_json

PAGE = "evaluation.html"
IN_WORDS = {"model": "model (its weights or its code)", "data": "data (images, split or number)"}
COLUMNS = (  # of the outcomes, that the summary and the page need
    "image_id",
    "label",
    "clean_prediction",
    "attack",
    "first_broken_step",
    "passes",
    "robust",
)
VERSIONS = ("ray", "torch", "torchvision", "pyarrow")


def evaluate_external(given: ExternalOptions) -> None:
    """Evaluate, write outcomes, evaluation.json and a page, and print the verdict."""
    confirm(given.allow_code)
    check_machine(gradient=given.gradient, field="--gradient", accelerator=given.accelerator)
    if given.name:
        folder_name(given.name)
    root = storage_root(given.storage)
    check_not_a_file(given.name, root, given.tracking_uri)
    with session_folder() as temporary, Reporter() as reporter:
        if hint := slow_here(gradient=given.gradient, accelerator=given.accelerator):
            reporter.say(hint)
        reporter.say(f"opening model {given.model} and data {given.data}")
        with nothing_left(root):
            check_writable(root)
            for field in ("model", "data", "weights"):
                check_readable(getattr(given, field), field=f"--{field}")
            subject = open_subject(given, root, Path(temporary))
            given = replace(given, slots=subject.slots)
            if given.protocol != "none":
                check_board(given, subject)
        if subject.weights_taken:
            reporter.say(f"weights {given.weights}: {subject.weights_taken}")
        name, identity = identify(given, subject)
        storage = root.child(name)
        reporter.say(
            f"evaluation {name} in {storage.uri}: {subject.n:,} images, {subject.classes} classes"
        )
        for warning in subject.warnings:
            reporter.say(f"warning: {warning}")
        with driver_lease(storage):
            claim_evaluation(storage, identity)
            remove_leftovers(storage)
            root.child("data").remove_abandoned()
            if gone := supersede_without_outcomes(Records(storage)):
                reporter.say(f"the outcomes of {gone} shards are gone; they are attacked again")
            subject = staged(subject, storage)
            planned = tasks_of(given, subject, name)
            check_evaluated_code(given, subject, Records(storage), planned, reporter)
            tasks = run_tasks(given, planned, Records(storage), reporter)
            found, table = write_evaluation(given, subject, tasks, storage, identity)
            show(found, storage, reporter)
            if given.protocol != "none":
                write_submission(given, subject, found, storage, reporter)
            card = write_card(given, subject, tasks[0], storage, reporter)
            write_page(given, found, table, card, storage)
            reporter.say(f"page: {storage.full(PAGE)}")


def show(found: dict[str, Any], storage: Storage, reporter: Reporter) -> None:
    """Print the claim, a warning if there is one, the table, and what it took."""
    sentences = [claim(found)]
    if warning := found.get("warning", ""):
        sentences.append(f"warning: {warning}")
    for sentence in sentences:
        reporter.console.print(printable(sentence), style="bold", soft_wrap=True, markup=False)
    reporter.console.print(terminal_table(attack_table(found)))
    for measured in found.get("calibrations", ()):
        reporter.say(str(Calibration.from_json(measured)))
    reporter.say(
        f"{found['passes_per_image']:.1f} passes per image, "
        f"{found['seconds']:.0f} s of work; {storage.full('evaluation.json')}"
    )


def claim_evaluation(storage: Storage, identity: dict[str, Any]) -> None:
    """Write config.json into a new folder; ValueError where the folder holds something else."""
    try:
        theirs = read_perhaps_sealed(storage, CONFIG)
    except FileNotFoundError:
        storage.write_json(CONFIG, sealed(identity))
        return
    except ValueError as error:
        raise ValueError(
            f"{storage.full(CONFIG)} {error}; choose another --name or --storage"
        ) from None
    if theirs != identity:
        raise ValueError(
            f"{storage.uri} holds {_held(theirs, identity)}; choose another --name or --storage"
        )


def _held(theirs: dict[str, Any], identity: dict[str, Any]) -> str:
    """Return in words what a folder holds instead of this evaluation."""
    if "attacks" not in theirs:
        return "something else than an evaluation"
    names = {**identity, **theirs}
    others = [name for name in names if theirs.get(name) != identity.get(name)]
    shown = ", ".join(IN_WORDS.get(name, name) for name in others)
    return f"another evaluation, which differs in: {shown}"


def check_evaluated_code(
    given: ExternalOptions,
    subject: Subject,
    records: Records,
    tasks: Sequence[EvaluationTask],
    reporter: Reporter,
) -> None:
    """Refuse, reuse or move aside the shards, and the card, of other code."""
    wanted = [*((EVALUATE, task.key) for task in tasks), (CARD, card_key(given, subject, tasks[0]))]
    committed = ((stage, record) for stage, key in wanted if (record := records.find(stage, key)))
    settle_code_changes(
        records,
        committed,
        choice=given.on_code_change,
        reporter=reporter,
        made="shards",
        by="evaluated",
    )


def write_evaluation(
    given: ExternalOptions,
    subject: Subject,
    tasks: Sequence[EvaluationTask],
    storage: Storage,
    identity: dict[str, Any],
) -> tuple[dict[str, Any], pa.Table]:
    """Merge the shards into outcomes/NAME.parquet, write evaluation.json, and return both."""
    n = tasks[-1].last
    drawn = subject.sample is not None or given.stop_when_width is not None
    rows = sampled_rows(subject.n_split, n, seed=given.seed) if drawn else torch.arange(n)
    expected = image_ids(Storage(subject.dataset.uri), given.split)[rows]
    name, records = tasks[0].name, Records(storage)
    path = merge_outcomes(records_of(tasks, records), expected.numpy(), records, name=name)
    table = pq.read_table(io.BytesIO(storage.read(path)), columns=list(COLUMNS))
    stopped = n < subject.n
    interval: Interval = wilson_interval
    if stopped:
        interval = partial(anytime_interval, total=subject.n)
    counted = summary(table, subject.attacks, interval=interval)
    chance = below_chance(counted["clean_accuracy"], subject.classes)
    warning = "; ".join(filter(None, (*subject.warnings, chance)))
    named_weights = {"weights": given.weights} if given.weights else {}
    found = {
        "name": name,
        "model": {"uri": given.model, **named_weights, **identity["model"]},
        "data": {"uri": given.data, "prepared": subject.dataset.uri, **identity["data"]},
        "threat_model": to_json(given.threat_model),
        "n_split": subject.n_split,
        "num_classes": subject.classes,
        "seed": given.seed,
        "cascade": identity["cascade"],
        **counted,
        **_together(records_of(tasks, records)),
        **({"warning": warning} if warning else {}),
        **({"stopped": stopped_at(given, subject)} if stopped else {}),
        "environment": environment_of(given)
        | {"versions": {package: importlib.metadata.version(package) for package in VERSIONS}},
        "outcomes": storage.full(path),
    }
    storage.write_json("evaluation.json", found)
    return found, table


def stopped_at(given: ExternalOptions, subject: Subject) -> dict[str, Any]:
    """Describe an evaluation that stopped before its last image; its intervals are of `of`."""
    return {
        "of": subject.n,
        "stop_when_width": given.stop_when_width,
        "interval": "anytime, for all images, whatever the moment of stopping",
    }


def write_page(
    given: ExternalOptions,
    found: dict[str, Any],
    table: pa.Table,
    card: dict[str, Any] | None,
    storage: Storage,
) -> None:
    """Write the page that a person reads."""
    # matplotlib takes a second to import
    from sat_ray.report.pages.evaluation_page import render_evaluation

    page = render_evaluation(found, table, claim=claim(found), command=given.command(), card=card)
    storage.write(PAGE, page.encode())


def _together(parts: Iterable[Record]) -> dict[str, Any]:
    """Return the seconds of all shards, and the calibration of low-precision gradients.

    Raises ValueError where shards have different calibrations: they are not one evaluation.
    """
    seconds, found = 0.0, set[str]()
    for part in parts:
        seconds += part.seconds
        found.add(json.dumps(part.payload.get("calibrations"), sort_keys=True))
    if len(found) > 1:
        raise ValueError(
            "the shards were calibrated differently: their workers compute differently; "
            "use one kind of node, or float32"
        )
    same = json.loads(found.pop())
    return {"seconds": seconds} | ({"calibrations": same} if same else {})
