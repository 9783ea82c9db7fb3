"""The stages: what each takes, what each returns.

Work that is committed is read, not done again; so a stage may be run at any time.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from sat_ray.data.class_names import check_extra_shape
from sat_ray.data.shards.changes import check_unchanged
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.manifest import MANIFEST
from sat_ray.data.shards.reading import image_ids, verify
from sat_ray.data.sources.base import EXTRA_PATH, PATH
from sat_ray.data.sources.registry import dataset_source
from sat_ray.evaluation.card import PASS
from sat_ray.evaluation.robustness import counted_robust_ids
from sat_ray.integrations.command_line.process.invocation import spelled
from sat_ray.integrations.network_check import check_network
from sat_ray.report.sweep_report import read_outcomes, strong_name, write_report
from sat_ray.storage.sealed import sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, SweepConfig
from sat_ray.sweep.context import Sweep, read_state
from sat_ray.sweep.plan.datasets import (
    data_uri,
    prepared_dataset,
    require_trainable,
    with_extra,
)
from sat_ray.sweep.plan.evaluations import (
    card_tasks,
    corruption_tasks,
    evaluation_tasks,
    strong_on_validation,
    strong_tasks,
    validation_tasks,
)
from sat_ray.sweep.plan.trainings import final_tasks
from sat_ray.sweep.records.store import STATE, Record
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import (
    CARD,
    CORRUPTIONS,
    EVALUATE,
    STAGES,
    STRONG,
    Dataset,
    EvaluationTask,
    TrainingTask,
)
from sat_ray.utils.serialization import json_bytes


class MissingInputError(ValueError):
    """A stage was run alone before the stage that it needs."""


def prepare(sweep: Sweep) -> Dataset:
    """Write the dataset's shards, or verify the ones that are there.

    Extra images come first: they are often one file, and the dataset may take hours.
    """
    data = sweep.config.data
    more = data.extra_data()
    if more is None:
        return _dataset(sweep, data)
    extra = _dataset(sweep, more, field=EXTRA_PATH)
    if (shape := data.shape()) is not None:
        check_extra_shape(shape, extra.manifest, own=data.dataset)
    return with_extra(_dataset(sweep, data), extra)


def _dataset(sweep: Sweep, data: DataSettings, *, field: str = PATH) -> Dataset:
    from sat_ray.integrations.ray.prepare import in_tasks

    uri = data_uri(data, sweep.root)
    dataset = Dataset.open(uri)
    source = dataset_source(data.dataset)
    if dataset is not None:
        check_unchanged(source, Storage(uri), path=data.path, field=field)
        data.test_images().check_unchanged(dataset.manifest)
    else:
        write_dataset(
            source,
            Storage(uri),
            rows_per_shard=data.rows_per_shard,
            path=data.path,
            download=data.download,
            storing=data.storing(),
            corrupt_share=data.corrupt_share,
            enlarged_share=data.enlarged_share,
            test=data.test_images(),
            field=field,
            run=in_tasks,
        )
        dataset = Dataset.open(uri)
        assert dataset is not None
    require_trainable(dataset)
    verify(Storage(uri))
    require_same_dataset(sweep, dataset)
    return dataset


def require_same_dataset(sweep: Sweep, dataset: Dataset) -> None:
    """Note with which manifest of a dataset a sweep begins; raise ValueError where it has another.

    A sweep that has computed nothing yet begins with the present one.
    """
    name = dataset.uri.rpartition("/")[2]
    path = f"{STATE}/datasets/{name}.json"
    seal = json_bytes(sealed({"dataset": name, "hash": dataset.hash}))
    if any(sweep.records.keys(stage) for stage in STAGES):
        sweep.storage.commit(path, seal)
    else:
        sweep.storage.write(path, seal)
    if read_state(sweep.storage, path).get("hash") != dataset.hash:
        raise ValueError(
            f"{dataset.uri}/{MANIFEST} is not the manifest that the sweep in {sweep.storage.uri} "
            "began with; restore the folder, or choose another --name to train on these images"
        )


def search(sweep: Sweep, data: Dataset) -> list[SearchPoint]:
    """Return the configurations that are worth a full training."""
    from sat_ray.integrations.ray.search.grid_search import search_finalists

    check_network(sweep.config, len(data.manifest["class_names"]), tuple(data.manifest["shape"]))
    return search_finalists(sweep.config, data, sweep.records)


def train(sweep: Sweep, data: Dataset, finalists: list[SearchPoint]) -> list[Record]:
    """Train every finalist with every seed; return their records, seed by seed."""
    from sat_ray.integrations.ray.train import train_all

    tasks = final_tasks(sweep.config, data, finalists)
    train_all(tasks, sweep.records, sweep.config.resources)
    found = _found(sweep, tasks)
    assert found is not None
    return found


def evaluate(sweep: Sweep, data: Dataset, models: list[Record]) -> dict[str, str]:
    """Attack every model on the test split: PGD, then the strong attacks on what survives.

    Where the sweep measures it, common corruptions come last.

    Returns the path of each model's merged outcomes of PGD by model name; `outcome_paths` has those
    of the strong attacks.
    """
    from sat_ray.integrations.ray.tasks import evaluate_all

    # the more robust a model, the longer its images are attacked: no long task shall be the last
    ordered = sorted(models, key=lambda record: -record.payload["val_robust_accuracy"])
    shards = (task for record in ordered for task in _test_tasks(sweep.config, data, record))
    corrupted = (
        task for record in ordered for task in corruption_tasks(sweep.config, data, record)
    )
    evaluate_all(chain(shards, corrupted), sweep.records, sweep.config.resources)
    return _merged(sweep, data, models)


def _merged(sweep: Sweep, data: Dataset, models: list[Record]) -> dict[str, str]:
    """Merge the committed shards of every model; return the paths of the outcomes by model name."""
    from sat_ray.sweep.execute.evaluation import sampled_rows
    from sat_ray.sweep.records.merge_outcomes import merge_outcomes

    ids = image_ids(Storage(data.uri), "test")
    evaluation = sweep.config.evaluation
    if (evaluated := evaluation.evaluated(len(ids))) < len(ids):
        ids = ids[sampled_rows(len(ids), evaluated, seed=evaluation.seed)]
    expected = ids.numpy()
    paths = {}
    for record in models:
        name = record.payload["name"]
        tasks = evaluation_tasks(sweep.config, data, record)
        paths[name] = merge_outcomes(_parts(sweep, tasks), expected, sweep.records, name=name)
        if strong := strong_tasks(sweep.config, data, record):
            alive = counted_robust_ids(read_outcomes(sweep.records, paths[name]))
            merge_outcomes(_parts(sweep, strong), alive, sweep.records, name=strong_name(name))
    return paths


def _test_tasks(config: SweepConfig, data: Dataset, record: Record) -> list[EvaluationTask]:
    """Return the tasks of a model on the test split; each also does the one that it builds on."""
    return strong_tasks(config, data, record) or evaluation_tasks(config, data, record)


def _parts(sweep: Sweep, tasks: list[EvaluationTask]) -> Iterator[Record]:
    return (part for task in tasks if (part := sweep.records.find(task.stage, task.key)))


def card(sweep: Sweep, data: Dataset, models: list[Record]) -> list[Record]:
    """Attack the validation images of every model; make cards of the best until one passes.

    The best under that attack are the candidates for champion. Returns the records of the cards.
    """
    from sat_ray.integrations.ray.tasks import evaluate_all, make_card

    tasks = (task for record in models for task in validation_tasks(sweep.config, data, record))
    evaluate_all(tasks, sweep.records, sweep.config.resources)
    strong = strong_on_validation(sweep.config, data, models, sweep.records)
    assert strong is not None
    cards = []
    for task in card_tasks(sweep.config, data, models, strong):
        cards.append(make_card(task, sweep.records, sweep.config.resources))
        if cards[-1].payload["card"]["verdict"] == PASS:
            break
    return cards


def report(
    sweep: Sweep,
    data: Dataset,
    models: list[Record],
    cards: list[Record],
    outcomes: dict[str, str],
    run_ids: dict[str, str],
) -> dict[str, Any]:
    """Write leaderboard, cards, figures and report.html; return the leaderboard."""
    return write_report(sweep, data, models, cards, outcomes, run_ids)


def _found(sweep: Sweep, tasks: list[TrainingTask]) -> list[Record] | None:
    """Return the records of tasks; None where one is not committed."""
    found = [sweep.records.find(task.stage, task.key) for task in tasks]
    committed = [record for record in found if record is not None]
    return committed if len(committed) == len(found) else None


NEEDS: dict[str, tuple[str, ...]] = {
    "prepare": (),
    "search": ("prepare",),
    "train": ("prepare", "search"),
    "card": ("prepare", "train"),
    "evaluate": ("prepare", "train"),
    "report": ("prepare", "train", "card", "evaluate"),
}


def committed_inputs(sweep: Sweep, name: str) -> dict[str, Any]:
    """Return what the stages that `name` needs returned, from their records.

    MissingInputError names the command to run first.
    """
    readers = {
        "prepare": _prepared,
        "search": _searched,
        "train": _trained,
        "card": _carded,
        "evaluate": _evaluated,
    }
    inputs: dict[str, Any] = {}

    def collect(stage: str) -> None:
        for before in NEEDS[stage]:
            collect(before)
            if before not in inputs:
                inputs[before] = readers[before](sweep, inputs)
            if inputs[before] is None:
                raise MissingInputError(
                    f"stage {name} needs the results of {before}; "
                    f"run first: {spelled(before)} with the same options"
                )

    collect(name)
    _require_same(sweep, inputs.get("prepare"))  # it writes, so only once nothing is missing
    return {stage: inputs[stage] for stage in NEEDS[name]}


def _require_same(sweep: Sweep, dataset: Dataset | None) -> None:
    """Check a dataset as `require_same_dataset` does, and its extra images."""
    while dataset is not None:
        require_same_dataset(sweep, dataset)
        dataset = dataset.extra


def _prepared(sweep: Sweep, inputs: dict[str, Any]) -> Dataset | None:
    dataset = prepared_dataset(sweep.config, sweep.root)
    if any(sweep.records.keys(stage) for stage in STAGES):
        _require_same(sweep, dataset)
    return dataset


def _searched(sweep: Sweep, inputs: dict[str, Any]) -> list[SearchPoint] | None:
    from sat_ray.integrations.ray.search.grid_search import committed_finalists

    return committed_finalists(sweep.config, inputs["prepare"], sweep.records)


def _trained(sweep: Sweep, inputs: dict[str, Any]) -> list[Record] | None:
    return _found(sweep, final_tasks(sweep.config, inputs["prepare"], inputs["search"]))


def _evaluated(sweep: Sweep, inputs: dict[str, Any]) -> dict[str, str] | None:
    data = inputs["prepare"]
    models = inputs["train"]
    tasks = [
        task
        for record in models
        for task in (
            *evaluation_tasks(sweep.config, data, record),
            *strong_tasks(sweep.config, data, record),
            *corruption_tasks(sweep.config, data, record),
        )
    ]
    committed = {stage: set(sweep.records.keys(stage)) for stage in (EVALUATE, STRONG, CORRUPTIONS)}
    if any(task.key not in committed[task.stage] for task in tasks):
        return None
    return _merged(sweep, data, models)  # again, because a merged file may be damaged or old


def _carded(sweep: Sweep, inputs: dict[str, Any]) -> list[Record] | None:
    strong = strong_on_validation(sweep.config, inputs["prepare"], inputs["train"], sweep.records)
    if strong is None:
        return None
    tasks = card_tasks(sweep.config, inputs["prepare"], inputs["train"], strong)
    found: list[Record] = []
    for task in tasks:
        record = sweep.records.find(CARD, task.key)
        if record is None:
            return None
        found.append(record)
        if record.payload["card"]["verdict"] == PASS:
            break
    return found
