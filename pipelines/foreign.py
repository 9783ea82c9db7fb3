"""Evaluate a model that others made: exact robust accuracy with its interval, sharded over Ray, resumed where it stopped."""

import importlib.metadata
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow.parquet as pq
import torch

from pipelines.code_change import settle_code_changes
from pipelines.exit_status import exit_status
from pipelines.foreign_options import LANES_PER_SHARD, ForeignOptions
from pipelines.progress import Reporter
from pipelines.verdict import claim, summary, to_terminal
from sat_ray.attacks import AttackSpec
from sat_ray.bundles import Demand, check_room, evaluation_resources
from sat_ray.calibration import Calibration
from sat_ray.card import CardSettings, robustness_card
from sat_ray.checkpoint import MODEL_JSON
from sat_ray.cli import UsageError, folder_name, parse_options, storage_root
from sat_ray.config import content_hash, to_json
from sat_ray.configuration import Configuration
from sat_ray.data.foreign import prepared
from sat_ray.data.shards import image_ids, read_rows
from sat_ray.jobs import model_of, rows_of, sampled_rows
from sat_ray.lease import driver_lease
from sat_ray.model_source import count_classes, kind_of, load_source, try_attack
from sat_ray.models import Normalized
from sat_ray.outcomes import merge_outcomes
from sat_ray.plan import CARD, EVALUATE, Dataset, EvaluationTask, shard_bounds, through_every_backward
from sat_ray.stages import Record, Records, numerical_environment, record_key
from sat_ray.storage import Storage, check_writable

POLL_SECONDS = 1.0
VERSIONS = ("ray", "torch", "torchvision", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model and the images, opened and found to fit each other.

    uri: where every worker can read the model; configuration: of a checkpoint's training, else None; attacks: what the model is to
    survive, through every backward pass that its training used.
    """

    kind: str
    uri: str
    digest: str
    model: torch.nn.Module
    dataset: Dataset
    n_split: int
    n: int
    classes: int
    configuration: Configuration | None
    attacks: tuple[AttackSpec, ...]

    @property
    def sample(self) -> int | None:
        """Return the number of images drawn; None where all are evaluated."""
        return None if self.n == self.n_split else self.n


def main() -> int:
    """Evaluate as the command line says and return the exit status."""
    return exit_status(lambda: evaluate_foreign(parse_options(sys.argv[1:], ForeignOptions(), about=__doc__ or "")))


def evaluate_foreign(given: ForeignOptions) -> None:
    """Evaluate, write outcomes and evaluation.json, and print the verdict."""
    for field in ("model", "data"):
        if not getattr(given, field):
            raise UsageError(f"--{field} is missing; --model URI and --data URI are needed (all: --help)")
    given.attacks(num_classes=10)  # refuses bad steps and sizes before anything is read
    if given.name:
        folder_name(given.name)
    root = storage_root(given.storage)
    check_writable(root)
    with tempfile.TemporaryDirectory(prefix="sat_ray-model-") as temporary, Reporter() as reporter:
        reporter.say(f"opening model {given.model} and data {given.data}")
        subject = open_subject(given, root, Path(temporary))
        name, identity = identify(given, subject)
        storage = root.child(name)
        reporter.say(f"evaluation {name} in {storage.uri}: {subject.n:,} images, {subject.classes} classes")
        with driver_lease(storage):
            claim_folder(storage, identity)
            subject = staged(subject, storage)
            tasks = tasks_of(given, subject, name)
            check_code(given, subject, Records(storage), tasks, reporter)
            parts = run_tasks(given, subject, tasks, Records(storage), reporter)
            found = write_evaluation(given, subject, parts, storage, name, identity)
            reporter.console.print(claim(found), style="bold", soft_wrap=True)
            reporter.console.print(to_terminal(found))
            for measured in found.get("calibrations", ()):
                reporter.say(str(Calibration.from_json(measured)))
            reporter.say(
                f"{found['passes_per_image']:.1f} passes per image, {found['seconds']:.0f} s of work; {storage.full('evaluation.json')}"
            )
            if given.card:
                write_card(given, subject, tasks[0], storage, reporter)


def open_subject(given: ForeignOptions, root: Storage, temporary: Path) -> Subject:
    """Open data and model and check that they fit; ValueError in one line where they do not."""
    dataset = Dataset.open(prepared(given.data, root, image_size=given.image_size))
    assert dataset is not None
    splits = dataset.manifest["splits"]
    if not splits.get(given.split):
        raise ValueError(
            f"--split {given.split!r} of data {given.data} has no images; allowed: {', '.join(s for s in splits if splits[s])}"
        )
    n_split = splits[given.split]
    if given.images is not None and given.images > n_split:
        raise ValueError(f"--images is {given.images}; allowed: 1 to {n_split}, the images of split {given.split}")
    kind, uri = kind_of(given.model), given.model
    if kind == "mlflow":
        from sat_ray.mlflow_tracker import fetch_model

        tracking = given.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.uri}/mlflow.db"
        uri = str(fetch_model(given.model, tracking_uri=tracking, folder=str(temporary), allow_pickle=given.allow_pickle))
        kind = "pt2" if uri.endswith(".pt2") else "pickle"
    if kind == "pt2" and given.allow_pickle:
        kind = "pickled_pt2"
    model, digest = load_source(kind, uri)
    some = read_rows(Storage(dataset.uri), given.split, torch.arange(min(given.lanes, n_split)))
    expected = len(dataset.manifest["class_names"]) or None
    classes = count_classes(model, some, lanes=given.lanes, expected=expected, what=given.model)
    configuration = _configuration(model, uri)
    attacks = tuple(one for spec in given.attacks(num_classes=classes) for one in _variants(configuration, spec))
    try_attack(model, some, attacks[0], lanes=given.lanes)
    return Subject(
        kind=kind,
        uri=uri,
        digest=digest,
        model=model,
        dataset=dataset,
        n_split=n_split,
        n=given.images or n_split,
        classes=classes,
        configuration=configuration,
        attacks=attacks,
    )


def _configuration(model: torch.nn.Module, uri: str) -> Configuration | None:
    """Return how a checkpoint was trained; its own activation where it does not say, None for any other model."""
    if not isinstance(model, Normalized) or model.spec is None or kind_of(uri) != "checkpoint":
        return None
    said = Storage.at(uri).read_json(MODEL_JSON)["about"].get("configuration")
    return Configuration(**said) if said else Configuration(activation=model.spec.activation, alpha=model.spec.alpha)


def _variants(configuration: Configuration | None, spec: AttackSpec) -> list[AttackSpec]:
    """A backward pass that training replaced hides gradients: attack through the true one and the smooth one."""
    return [spec] if configuration is None else through_every_backward(spec, configuration)


def identify(given: ForeignOptions, subject: Subject) -> tuple[str, dict[str, Any]]:
    """Return the evaluation's name and, as JSON, all that determines its result but the numerical environment."""
    spec = subject.model.spec if isinstance(subject.model, Normalized) else None
    identity = {
        "model": {"kind": subject.kind, "digest": subject.digest, "spec": to_json(spec)},
        "data": {"hash": subject.dataset.hash, "split": given.split, "sample": subject.sample},
        "attacks": [to_json(attack) for attack in subject.attacks],
        "cascade": given.attack == "cascade",
        "seed": given.seed,
        "lanes": given.lanes,
    }
    made = f"{_slug(given.model)}-{_slug(given.data)}-{content_hash(identity)[:8]}"
    return folder_name(given.name or made), identity


def _slug(text: str) -> str:
    last = re.sub(r"\.(pt2|npz)$", "", text.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9_]+", "-", last).strip("-_")[:24] or "unnamed"


def claim_folder(storage: Storage, identity: dict[str, Any]) -> None:
    """Write config.json into a new folder; ValueError where the folder holds something else."""
    try:
        theirs = storage.read_json("config.json")
    except FileNotFoundError:
        storage.write_json("config.json", identity)
        return
    if theirs != identity:
        raise ValueError(f"{storage.uri} holds another evaluation or a sweep; choose another --name or --storage")


def staged(subject: Subject, storage: Storage) -> Subject:
    """Copy a model that is one file into the evaluation's folder, where every worker can read it."""
    if subject.kind in ("checkpoint", "function"):
        return subject
    name = "model.pt2" if subject.uri.endswith(".pt2") else "model.pth"
    if not storage.exists(name):
        storage.write(name, Path(subject.uri).read_bytes())
    return replace(subject, uri=storage.full(name))


def tasks_of(given: ForeignOptions, subject: Subject, name: str) -> list[EvaluationTask]:
    """Cut the images into shards of nearly equal size."""
    return [
        EvaluationTask(
            checkpoint=subject.uri,
            checkpoint_sha256=subject.digest,
            kind=subject.kind,
            name=name,
            attacks=subject.attacks,
            cascade=given.attack == "cascade",
            first=first,
            last=last,
            split=given.split,
            sample=subject.sample,
            seed=given.seed,
            lanes=given.lanes,
            dataset=subject.dataset,
            environment=_environment(given),
        )
        for first, last in shard_bounds(subject.n, given.shard_size or LANES_PER_SHARD * given.lanes)
    ]


def _environment(given: ForeignOptions) -> dict[str, Any]:
    return numerical_environment(accelerator=given.accelerator, threads=given.cpus_per_task, lanes=given.lanes)


def check_code(given: ForeignOptions, subject: Subject, records: Records, tasks: Sequence[EvaluationTask], reporter: Reporter) -> None:
    """Deal with shards, and a card, that other code made: refuse to start, reuse them, or move them aside."""
    wanted = [(EVALUATE, task.key) for task in tasks]
    if given.card:
        wanted.append((CARD, record_key(CARD, card_inputs(given, subject, tasks[0]))))
    committed = [(stage, record) for stage, key in wanted if (record := records.find(stage, key))]
    settle_code_changes(records, committed, choice=given.on_code_change, reporter=reporter, made="shards", by="evaluated")


def run_tasks(
    given: ForeignOptions, subject: Subject, tasks: Sequence[EvaluationTask], records: Records, reporter: Reporter
) -> list[Record]:
    """Evaluate what is not committed yet, as Ray tasks, and return every task's record."""
    missing = [task for task in tasks if records.find(EVALUATE, task.key) is None]
    if missing:
        from sat_ray.distributed.tasks import evaluate_all, stage_task

        with _on_ray(given, reporter):
            _follow(stage_task(evaluate_all, missing, records, given.resources, name="evaluate"), missing, len(tasks), records, reporter)
    reporter.say(f"{len(tasks)} shards: {len(missing)} computed, {len(tasks) - len(missing)} reused")
    found = [records.find(EVALUATE, task.key) for task in tasks]
    assert all(found)
    return [record for record in found if record is not None]


@contextmanager
def _on_ray(given: ForeignOptions, reporter: Reporter) -> Iterator[None]:
    from sat_ray.distributed.nodes import node_groups
    from sat_ray.distributed.session import ray_session

    with ray_session() as which:
        reporter.say(f"Ray: {which}")
        check_room([Demand(stage="evaluate", field="--cpus-per-task", resources=evaluation_resources(given.resources))], node_groups())
        yield


def _follow(ref: Any, missing: Sequence[EvaluationTask], total: int, records: Records, reporter: Reporter) -> Any:
    from sat_ray.distributed.tasks import result, wait

    progress = reporter.stage("evaluate", total)
    waiting = {task.key for task in missing}
    while not wait(ref, seconds=POLL_SECONDS):
        progress.update(total - len(waiting.difference(records.keys(EVALUATE))), [])
    answer = result(ref)
    progress.end()
    return answer


def write_evaluation(
    given: ForeignOptions, subject: Subject, parts: Sequence[Record], storage: Storage, name: str, identity: dict[str, Any]
) -> dict[str, Any]:
    """Merge the shards into outcomes/<name>.parquet, write evaluation.json and return it."""
    rows = torch.arange(subject.n) if subject.sample is None else sampled_rows(subject.n_split, subject.n, seed=given.seed)
    expected = image_ids(Storage(subject.dataset.uri), given.split)[rows]
    path = merge_outcomes(list(parts), expected.numpy(), Records(storage), name=name)
    columns = ["image_id", "label", "clean_prediction", "attack", "first_broken_step", "passes", "robust"]
    table = pq.read_table(io.BytesIO(storage.read(path)), columns=columns)
    found = {
        "name": name,
        "model": {"uri": given.model, **identity["model"]},
        "data": {"uri": given.data, "prepared": subject.dataset.uri, **identity["data"]},
        "threat_model": to_json(given.threat_model),
        "n_split": subject.n_split,
        "num_classes": subject.classes,
        "seed": given.seed,
        "cascade": identity["cascade"],
        **summary(table, subject.attacks),
        **_calibrations(parts),
        "seconds": sum(part.seconds for part in parts),
        "environment": _environment(given) | {"versions": {package: importlib.metadata.version(package) for package in VERSIONS}},
        "outcomes": storage.full(path),
    }
    storage.write_json("evaluation.json", found)
    return found


def _calibrations(parts: Sequence[Record]) -> dict[str, Any]:
    """Return what bf16 gradients were checked with; every shard must have found the same, or their verdicts are not of one evaluation."""
    found = [part.payload.get("calibrations") for part in parts]
    if any(one != found[0] for one in found):
        raise ValueError("the shards were calibrated differently: their workers compute differently; use one kind of node, or float32")
    return {"calibrations": found[0]} if found[0] else {}


def write_card(given: ForeignOptions, subject: Subject, task: EvaluationTask, storage: Storage, reporter: Reporter) -> None:
    """Compute the robustness card as one Ray task, unless it is committed, write card.json, and print its verdict and reasons."""
    records, inputs = Records(storage), card_inputs(given, subject, task)
    record = records.find(CARD, record_key(CARD, inputs))
    if record is None:
        from sat_ray.distributed.tasks import result, stage_task

        n = inputs["images"]
        reporter.say(f"robustness card: {n:,} images")
        started = perf_counter()
        with _on_ray(given, reporter):
            work = (card_of, replace(task, first=0, last=n, sample=n), given.pgd(), subject.configuration)
            ref = stage_task(*work, name="card", resources=evaluation_resources(given.resources))
            payload = {"name": task.name, "card": result(ref)}
        record = records.commit(CARD, record_key(CARD, inputs), inputs=inputs, payload=payload, seconds=perf_counter() - started)
    card = record.payload["card"]
    storage.write_json("card.json", card)
    reporter.say(f"robustness card: {card['verdict']}; {storage.full('card.json')}")
    for reason in card["reasons"]:
        reporter.say(f"  {reason}")


def card_inputs(given: ForeignOptions, subject: Subject, task: EvaluationTask) -> dict[str, Any]:
    """Return everything that determines the card."""
    settings = CardSettings()
    return {
        "weights": task.checkpoint_sha256,
        "attack": given.pgd().to_json(),
        "configuration": None if subject.configuration is None else subject.configuration.to_json(),
        "settings": to_json(settings),
        "split": task.split,
        "images": min(settings.images, subject.n),
        "seed": task.seed,
        "lanes": task.lanes,
        "dataset": task.dataset.hash,
        "environment": task.environment,
    }


def card_of(task: EvaluationTask, attack: AttackSpec, configuration: Configuration | None) -> dict[str, Any]:
    """Compute the card of a task's model on the task's images, where the task runs."""
    torch.set_num_threads(int(task.environment["threads"]))
    split = read_rows(Storage(task.dataset.uri), task.split, rows_of(task))
    variants = partial(_variants, configuration)
    return robustness_card(model_of(task), split, attack=attack, variants=variants, seed=task.seed, lanes=task.lanes)
