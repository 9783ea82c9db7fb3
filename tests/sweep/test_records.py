"""Records and plans: a key is what determines a result, the first commit counts,
and nothing is computed twice.
"""

import dataclasses
import importlib
import json
import math
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweeps import filled, record_of

from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.sources.registry import DATASETS
from sat_ray.evaluation.intervals import anytime_interval
from sat_ray.integrations.stages import committed_inputs, prepare
from sat_ray.report.sweep_report import card_of
from sat_ray.storage.sealed import SEAL, read_sealed, sealed
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import (
    CostSettings,
    EvaluationSettings,
    FinalSettings,
    ModelSettings,
    ResourceSettings,
    SearchSettings,
    SweepConfig,
)
from sat_ray.sweep.context import Sweep
from sat_ray.sweep.execute.evaluation import evaluate_and_commit, rows_of, sampled_rows
from sat_ray.sweep.execute.inputs import split_of
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.datasets import dataset_uri
from sat_ray.sweep.plan.evaluations import card_tasks, evaluation_tasks
from sat_ray.sweep.plan.trainings import final_tasks, planned_trials, trial_task
from sat_ray.sweep.records.merge_outcomes import check_each_id_once, merge_outcomes
from sat_ray.sweep.records.so_far import Committed
from sat_ray.sweep.records.store import (
    Record,
    Records,
    Stage,
    changed_modules,
    code_hashes,
    numerical_environment,
    record_key,
    require_environment,
)
from sat_ray.sweep.search.search_space import Group, SearchPoint, groups, promote
from sat_ray.sweep.tasks import (
    CARD,
    EVALUATE,
    SEARCH,
    STAGES,
    TRAIN,
    Dataset,
    EvaluationTask,
    TrainingTask,
)
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import EpochReport, TrainingSettings

CONFIG = SweepConfig(
    recipe="toy",
    threat_model=ThreatModel("linf", 40 / 255),
    model=ModelSettings(width=8),
    training=TrainingSettings(
        epochs=3,
        global_batch_size=128,
        batchnorm_group_size=64,
        validate_every=1,
        validation_steps=4,
        warmup_epochs=1,
    ),
    search=SearchSettings(
        activations=("silu:1", "elu:0.5,1,2"), pairs=("relu/relu_smooth_backward",), rungs=(1, 2)
    ),
    final=FinalSettings(seeds=(0, 1)),
    evaluation=EvaluationSettings(steps=4, step_size=10 / 255, slots=32, shard_size=450),
)
SILU = SearchPoint(activation="silu")
TOY = Stage("toy", 1, ("sat_ray.utils.names",))


def final_task(
    dataset: Dataset, config: SweepConfig = CONFIG, configuration: SearchPoint = SILU
) -> TrainingTask:
    """Return the first training of the leaderboard."""
    return final_tasks(config, dataset, [configuration])[0]


def changed(config: SweepConfig, section: str, **values: Any) -> SweepConfig:
    """Return a config with other values in one section."""
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **values)}
    )


@pytest.fixture(scope="module")
def once(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """Return the folder of a sweep in which one training was made, and the epochs of that; tests
    must not change it.
    """
    folder, epochs = tmp_path_factory.mktemp("once") / "sweep", list[int]()
    train_and_commit(
        final_task(dataset),
        Records(Storage.at(folder)),
        on_epoch=lambda report: epochs.append(report.epoch),
    )
    return folder, epochs


@pytest.fixture
def trained(once: tuple[Path, list[int]], records: Records) -> Record:
    """Put a copy of that training into the test's records and return its record."""
    shutil.copytree(once[0], records.storage.uri)
    (record,) = records.all(TRAIN)
    return record


def test_the_same_work_has_the_same_key_wherever_and_by_however_many_it_is_done(
    dataset: Dataset,
) -> None:
    key = final_task(dataset).key
    assert key == final_task(dataset).key and len(key) == 32
    assert key == final_task(dataclasses.replace(dataset, uri="s3://elsewhere/data")).key
    resources = {"train_workers": 1, "cpus_per_trial": 2, "gpus_per_worker": 1}
    resources |= {"cpus_per_evaluation": 2}
    assert key == final_task(dataset, changed(CONFIG, "resources", **resources)).key
    assert key == final_task(dataset, changed(CONFIG, "search", reduction=3, rungs=(1, 3))).key
    assert key == final_task(dataset, changed(CONFIG, "final", seeds=(0, 5, 6))).key


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("final", {"seeds": (1,)}),
        ("threat_model", {"epsilon": 39 / 255}),
        ("model", {"width": 9}),
        ("training", {"epochs": 4}),
        ("training", {"learning_rate": 0.1}),
        ("training", {"batchnorm_group_size": 32}),
        ("training", {"compile": True}),
        ("evaluation", {"slots": 64}),
        ("resources", {"cpus_per_worker": 2}),
        ("resources", {"accelerator": "H200"}),
    ],
)
def test_what_changes_a_training_changes_its_key(
    dataset: Dataset, section: str, values: dict[str, Any]
) -> None:
    """Slots are among them: they decide the rounding of the validation that chooses the weights."""
    assert final_task(dataset, changed(CONFIG, section, **values)).key != final_task(dataset).key


def test_activation_alpha_attacker_data_stage_and_length_change_the_key(dataset: Dataset) -> None:
    tasks = [
        final_task(dataset, configuration=one)
        for one in (*CONFIG.search.points(), SearchPoint(activation="relu"))
    ]
    tasks += [
        final_task(dataclasses.replace(dataset, hash="other")),
        final_task(dataset).at(2),
        trial_task(CONFIG, dataset, SILU),
    ]
    assert len({task.key for task in tasks}) == len(tasks) == 9
    assert (
        record_key(TOY, {})
        != record_key(dataclasses.replace(TOY, version=2), {})
        != record_key(TOY, {"x": 1})
    )


def test_the_first_commit_of_a_key_counts(records: Records) -> None:
    first = records.commit(TOY, "k", inputs={}, payload={"value": 1}, seconds=1.0)
    second = records.commit(TOY, "k", inputs={}, payload={"value": 2}, seconds=2.0)
    assert first == second == records.find(TOY, "k") and records.keys(TOY) == ["k"]
    assert records.find(TOY, "other") is None


def test_a_half_written_record_is_never_seen(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.link", killed)
        patch.setattr("os.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            records.commit(TOY, "k", inputs={}, payload={}, seconds=0.0)
    assert len(list(Path(records.storage.full("state/toy")).iterdir())) == 1
    assert records.keys(TOY) == [] and records.find(TOY, "k") is None and records.all(TOY) == []
    records.commit(TOY, "k", inputs={}, payload={}, seconds=0.0)
    assert records.keys(TOY) == ["k"]


def test_a_record_that_was_changed_by_hand_is_refused_and_says_what_to_do(records: Records) -> None:
    records.commit(TOY, "k", inputs={"a": 1}, payload={"val_robust_accuracy": 0.5}, seconds=0.0)
    text = records.storage.read("state/toy/k.json")
    records.storage.write("state/toy/k.json", text.replace(b"0.5", b"0.6"))
    with pytest.raises(
        ValueError,
        match=r"state/toy/k\.json does not match its checksum: .*; move it away and run again$",
    ):
        records.find(TOY, "k")
    records.storage.write("state/toy/other.json", text)
    with pytest.raises(
        ValueError, match=r"state/toy/other\.json is that of toy k; move it away and run again$"
    ):
        records.find(TOY, "other")


def test_a_record_of_an_earlier_version_is_refused_and_says_what_to_do(records: Records) -> None:
    records.commit(TOY, "k", inputs={}, payload={}, seconds=0.0)
    plain = records.storage.read_json("state/toy/k.json")
    del plain[SEAL]
    records.storage.write_json("state/toy/k.json", plain)
    with pytest.raises(
        ValueError,
        match=(
            r"k\.json has no checksum: an earlier version of sat_ray wrote it; choose another "
            r"--name"
        ),
    ):
        records.find(TOY, "k")
    records.storage.write_json("state/toy/k.json", sealed(plain | {"more": 1}))
    with pytest.raises(
        ValueError, match=r"k\.json has the fields of another version; choose another --name"
    ):
        records.find(TOY, "k")


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 400), replaced=st.binary(max_size=6), span=st.integers(0, 6))
def test_damaged_bytes_of_a_record_give_one_line_or_the_same_record(
    records: Records, at: int, replaced: bytes, span: int
) -> None:
    key = "kept"
    made = records.commit(
        TOY,
        key,
        inputs={"a": [1, None, "x"]},
        payload={"score": 0.25, "list": [{"b": 1e-9}]},
        seconds=1.5,
    )
    data = records.storage.read(f"state/toy/{key}.json")
    records.storage.write(f"state/toy/{key}.json", data[:at] + replaced + data[at + span :])
    message = f"state/toy/{key}.json"
    try:
        assert records.find(TOY, key) == made
    except ValueError as error:
        message = str(error)
    finally:
        records.storage.write(f"state/toy/{key}.json", data)
    assert f"state/toy/{key}.json" in message and "\n" not in message


@pytest.mark.parametrize(
    "value",
    [{3: "a", 20: "b"}, {"x": (1, 2.0, -0.0, 1e300)}, {"ä": "α\u2028", "n": None, "t": True}],
)
def test_what_is_sealed_is_sound_when_it_is_read_back(
    tmp_path: Path, value: dict[Any, Any]
) -> None:
    storage = Storage.at(tmp_path)
    storage.write_json("x.json", sealed(value))
    assert read_sealed(storage, "x.json") == json.loads(json.dumps(value))


def test_new_records_come_once_and_only_their_keys_are_kept(records: Records) -> None:
    def commit(*keys: str) -> None:
        for key in keys:
            records.commit(TOY, key, inputs={}, payload={"value": key}, seconds=0.0)

    assert list(records.new(TOY)) == []
    commit("b", "a")
    assert [record.payload["value"] for record in records.new(TOY)] == ["a", "b"]
    commit("c")
    assert [[record.key for record in records.new(TOY)] for _ in range(2)] == [["c"], []]
    assert [[record.key for record in records.each(TOY)] for _ in range(2)] == [["a", "b", "c"]] * 2
    assert records._read == {} and [record.key for record in Records(records.storage).new(TOY)] == [
        "a",
        "b",
        "c",
    ]


def test_records_come_oldest_first(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, created in (("b", 1.0), ("a", 2.0), ("c", 1.0)):
        monkeypatch.setattr("time.time", lambda created=created: created)
        records.commit(TOY, key, inputs={}, payload={}, seconds=0.0)
    assert [record.key for record in records.all(TOY)] == ["b", "c", "a"]


def test_a_superseded_record_is_moved_and_its_work_may_be_done_again(records: Records) -> None:
    old = records.commit(TOY, "k", inputs={}, payload={"value": 1}, seconds=0.0)
    records.supersede(old)
    assert records.find(TOY, "k") is None
    assert records.commit(TOY, "k", inputs={}, payload={"value": 2}, seconds=0.0).payload == {
        "value": 2
    }
    (kept,) = Path(records.storage.full("superseded")).rglob("*.json")
    assert kept.parts[-2:] == ("toy", "k.json") and '"value": 1' in kept.read_text()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the source file of a module that imports one of ours."""
    path = tmp_path / "toy_stage_code.py"
    path.write_text("from sat_ray.utils.names import suggest\nSTEPS = 10\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    code_hashes.cache_clear()
    yield path
    code_hashes.cache_clear()


@pytest.mark.parametrize(
    ("source", "noticed"),
    [
        (
            (
                '"""A docstring."""\n\n'
                "from sat_ray.utils.names import suggest  # a comment\n\nSTEPS = (10)\n"
            ),
            False,
        ),
        ("from sat_ray.utils.names import suggest\nSTEPS = 11\n", True),
        ("from sat_ray.utils.names import suggest\nSTEPS = 10\ndef more(): pass\n", True),
        ("from sat_ray.utils.names import suggest\nSTEPS = '10'\n", True),
    ],
)
def test_code_is_what_runs_not_how_it_is_laid_out(
    records: Records, module: Path, source: str, noticed: bool
) -> None:
    stage = Stage("toy", 1, (module.stem,))
    record = records.commit(stage, "k", inputs={}, payload={}, seconds=0.0)
    assert (
        record.code.keys() == {module.stem, "sat_ray.utils.names"}
        and changed_modules(record, stage) == []
    )
    module.write_text(source)
    code_hashes.cache_clear()
    assert changed_modules(record, stage) == ([module.stem] if noticed else [])


def test_a_docstring_inside_a_function_is_no_code_and_a_new_import_is(
    records: Records, module: Path
) -> None:
    stage = Stage("toy", 1, (module.stem,))
    module.write_text("def f():\n    'one'\n    return 1\n")
    record = records.commit(stage, "k", inputs={}, payload={}, seconds=0.0)
    code_hashes.cache_clear()
    module.write_text("def f():\n    'two'\n    return 1\n")
    assert changed_modules(record, stage) == []
    code_hashes.cache_clear()
    module.write_text("def f():\n    from sat_ray.utils import names\n    return 1\n")
    assert changed_modules(record, stage) == ["sat_ray.utils", "sat_ray.utils.names", module.stem]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_record_notices_a_change_anywhere_in_the_science(stage: Stage) -> None:
    science = {
        "training.loop",
        "attacks.pgd",
        "attacks.losses",
        "activations.registry",
        "activations.entries",
        "activations.info",
        "activations.functions",
        "activations.module",
        "models.view",
        "utils.randomness",
        "threat",
        "evaluation.robustness",
        "evaluation.engine.run_attack",
        "data.shards.reading",
    }
    assert {f"sat_ray.{name}" for name in science} <= code_hashes(stage.modules).keys()
    assert not any("integrations" in name for name in code_hashes(stage.modules))


def configurations(*alphas: float) -> tuple[SearchPoint, ...]:
    return tuple(SearchPoint(activation="elu", alpha=alpha) for alpha in alphas)


def test_a_group_is_the_alphas_of_one_activation_or_one_pair_in_the_order_given() -> None:
    found = groups(CONFIG.search.points())
    assert [
        (one.members[0].activation, one.members[0].attacker_activation, len(one.members))
        for one in found
    ] == [
        ("silu", "silu", 1),
        ("elu", "elu", 3),
        ("relu", "relu_smooth_backward", 1),
    ]
    assert len(groups(SearchSettings().points())) == 15


def test_promotion_goes_by_robust_then_clean_accuracy_and_ties_to_the_earlier() -> None:
    members = configurations(0.5, 1.0, 2.0, 4.0)
    scores = dict(zip(members, [(0.5, 0.9), (0.6, 0.1), (0.5, 0.95), (0.5, 0.9)], strict=True))
    assert promote(Group(members), scores, reduction=1).members == (
        members[1],
        members[2],
        members[0],
        members[3],
    )
    assert promote(Group(members), scores, reduction=2).members == (members[1], members[2])
    level = dict.fromkeys(members, (0.5, 0.5))
    assert promote(Group(members), level, reduction=4).members == members[:1]


@given(count=st.integers(1, 30), reduction=st.integers(2, 5))
def test_promotion_keeps_one_in_reduction_rounded_up_and_never_none(
    count: int, reduction: int
) -> None:
    members = configurations(*[1.0 + i for i in range(count)])
    kept = promote(Group(members), dict.fromkeys(members, (0.0, 0.0)), reduction=reduction)
    assert len(kept.members) == math.ceil(count / reduction)


@pytest.mark.parametrize("rungs", [(1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("reduction", [2, 3])
@pytest.mark.parametrize("seeds", [(0,), (3, 4)])
def test_planned_trials_are_what_the_grid_really_commits(
    dataset: Dataset,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    rungs: tuple[int, ...],
    reduction: int,
    seeds: tuple[int, ...],
) -> None:
    search = importlib.import_module("sat_ray.integrations.ray.search.grid_search")
    space = SearchSettings(
        activations=("silu:1", "elu:0.5,1,2,3,4,5,6", "celu:1.5,2"),
        rungs=rungs,
        reduction=reduction,
        seeds=seeds,
    )
    config = dataclasses.replace(CONFIG, search=space)

    def run_rung(
        tasks: list[TrainingTask],
        previous: list[Record | None],
        records: Records,
        resources: ResourceSettings,
        **limits: Any,
    ) -> None:
        for task, before in zip(tasks, previous, strict=True):
            assert (before is None) == (task.until == rungs[0]) and (
                before is None or before.payload["until"] < task.until
            )
            alpha = task.configuration.alpha or 0.0
            noise = (
                0.5 if task.seed == 3 else -0.5
            )  # larger than what the alphas differ by; the mean over seeds has none
            last_val = [alpha / 10 + noise * (len(seeds) > 1) * (1 if alpha < 3 else -1), 0.5]
            payload = {"until": task.until, "last_val": last_val}
            made = filled(task.stage, payload, task.inputs)
            records.commit(task.stage, task.key, **made, seconds=0.0)

    monkeypatch.setattr(search, "run_rung", run_rung)
    assert search.committed_finalists(config, dataset, records) is None
    finalists = search.search_finalists(config, dataset, records)
    assert len(records.keys(SEARCH)) == planned_trials(config)
    assert [one.alpha for one in finalists[:3]] == [1.0, 6.0, 2.0]
    assert finalists == search.committed_finalists(config, dataset, records) and len(finalists) == 6


def test_a_training_is_computed_once(
    dataset: Dataset, once: tuple[Path, list[int]], trained: Record, records: Records
) -> None:
    again = train_and_commit(
        final_task(dataset), records, on_epoch=lambda report: pytest.fail("trained again")
    )
    assert once[1] == [0, 1, 2] and again == trained
    assert records.keys(TRAIN) == [final_task(dataset).key]
    assert trained.payload["until"] == 3 and len(trained.payload["history"]) == 3


def test_a_training_killed_half_way_goes_on_and_ends_with_the_same_content(
    dataset: Dataset, once: tuple[Path, list[int]], records: Records
) -> None:
    epochs: list[int] = []

    def kill(report: EpochReport) -> None:
        epochs.append(report.epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_commit(final_task(dataset), records, on_epoch=kill)
    assert records.keys(TRAIN) == []
    resumed = train_and_commit(final_task(dataset), records, on_epoch=kill)
    assert epochs == [0, 1, 2]
    (undisturbed,) = Records(Storage.at(once[0])).all(TRAIN)
    assert (
        resumed.content == undisturbed.content
        and resumed.payload["sha256"] == undisturbed.payload["sha256"]
    )


def test_a_trial_goes_on_from_its_record_of_the_rung_before(
    dataset: Dataset, records: Records
) -> None:
    task, epochs = trial_task(CONFIG, dataset, SILU), []
    short = train_and_commit(task.at(1), records)
    long = train_and_commit(
        task, records, previous=short, on_epoch=lambda report: epochs.append(report.epoch)
    )
    assert epochs == [1] and (short.payload["until"], long.payload["until"]) == (1, 2)
    assert [row["epoch"] for row in long.payload["history"]] == [0, 1]
    assert long.payload["history"][0] == short.payload["history"][0]


def test_a_finished_search_keeps_no_states_to_go_on_from_and_one_cut_by_its_budget_keeps_them(
    dataset: Dataset, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = importlib.import_module("sat_ray.integrations.ray.search.grid_search")

    def run_rung(
        tasks: list[TrainingTask],
        previous: list[Record | None],
        records: Records,
        *_: Any,
        **limits: Any,
    ) -> None:
        for task, before in zip(tasks, previous, strict=True):
            if limits["budget"].accelerator_seconds is None or task in limits["exempt"]:
                train_and_commit(task, records, previous=before)

    monkeypatch.setattr(search, "run_rung", run_rung)
    config = dataclasses.replace(
        CONFIG, search=SearchSettings(activations=("silu:1", "elu:1,2"), pairs=(), rungs=(1, 2))
    )
    cut = search.search_finalists(
        dataclasses.replace(config, cost=CostSettings(budget=1e-9)), dataset, records
    )
    kept = list((Path(records.storage.uri) / "checkpoints").rglob("state.safetensors"))
    assert len(cut) == 1 and len(kept) == 1
    finalists = search.search_finalists(config, dataset, records)
    assert len(finalists) == 2 and len(records.keys(SEARCH)) == planned_trials(config) == 3
    left = [
        path.name
        for path in (Path(records.storage.uri) / "checkpoints").rglob("*")
        if path.is_file()
    ]
    assert "state.safetensors" not in left and left.count("model.safetensors") == 3
    assert search.search_finalists(config, dataset, records) == finalists


def test_a_shard_is_attacked_once_and_all_shards_make_the_whole_split(
    dataset: Dataset, trained: Record, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = evaluation_tasks(CONFIG, dataset, trained)
    parts = [evaluate_and_commit(task, records) for task in tasks]
    monkeypatch.setattr(
        "sat_ray.sweep.execute.evaluation.evaluate",
        lambda *args, **kwargs: pytest.fail("attacked again"),
    )
    assert [evaluate_and_commit(task, records) for task in tasks] == parts
    expected = set(split_of(dataset.uri, "test", dataset.hash).image_ids.tolist())
    path = merge_outcomes(parts, expected, records, name="silu-s0")
    table = pq.read_table(records.storage.full(path))
    assert table["image_id"].to_pylist() == sorted(expected)
    assert sum(table["robust"].to_pylist()) == sum(part.payload["robust"] for part in parts)
    assert sum(part.payload["n"] for part in parts) == 899
    for wrong, message in ((parts[:1], "missing ids"), ([*parts, parts[0]], "doubled ids")):
        with pytest.raises(ValueError, match=message):
            merge_outcomes(wrong, expected, records, name="silu-s0")
    records.storage.write(parts[0].payload["path"], b"damaged")
    with pytest.raises(
        ValueError, match=r"outcomes .*/state/parts/.*parquet do not match their record"
    ):
        merge_outcomes(parts, expected, records, name="silu-s0")


def test_evaluation_keys_follow_weights_attack_rows_seed_data_and_slots(dataset: Dataset) -> None:
    record = record_of(SILU)
    task = evaluation_tasks(CONFIG, dataset, record)[0]
    assert (
        task.key
        == evaluation_tasks(changed(CONFIG, "resources", train_workers=1), dataset, record)[0].key
    )
    assert task.key == dataclasses.replace(task, checkpoint="elsewhere", name="other").key
    others = [
        evaluation_tasks(changed(CONFIG, "evaluation", **one), dataset, record)[0]
        for one in ({"slots": 64}, {"steps": 5}, {"seed": 1})
    ]
    others += [
        dataclasses.replace(task, checkpoint_sha256="1"),
        dataclasses.replace(task, last=7),
        evaluation_tasks(CONFIG, dataset, record)[1],
    ]
    others += [dataclasses.replace(task, dataset=dataclasses.replace(dataset, hash="other"))]
    assert len({task.key, *(one.key for one in others)}) == 8
    assert record_key(EVALUATE, task.inputs) == task.key


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([{1, 2}, {3}], r"doubled ids \[\], missing ids \[4\], unexpected ids \[\]"),
        ([{1, 2}, {2, 3, 4}], r"doubled ids \[2\], missing ids \[\], unexpected ids \[\]"),
        ([{1, 2}, {3, 4, 9}], r"doubled ids \[\], missing ids \[\], unexpected ids \[9\]"),
        ([{1, 2}, {2, 9}], r"doubled ids \[2\], missing ids \[3, 4\], unexpected ids \[9\]"),
    ],
)
def test_shards_that_do_not_partition_the_split_are_refused_by_the_ids(
    shards: list[set[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"outcomes of toy: {message}"):
        check_each_id_once(shards, {1, 2, 3, 4}, name="toy")


def test_shards_that_partition_the_split_pass() -> None:
    check_each_id_once([{1, 3}, {2, 4}], {1, 2, 3, 4}, name="toy")


@given(count=st.integers(1, 3000), shard_size=st.integers(1, 700))
def test_evaluation_shards_partition_the_split_evenly(count: int, shard_size: int) -> None:
    data = Dataset(uri="", hash="h", manifest={"splits": {"test": count}})
    tasks = evaluation_tasks(
        changed(CONFIG, "evaluation", shard_size=shard_size), data, record_of(SILU)
    )
    assert [row for task in tasks for row in range(task.first, task.last)] == list(range(count))
    sizes = [task.last - task.first for task in tasks]
    assert (
        max(sizes) <= shard_size
        and max(sizes) - min(sizes) <= 1
        and len({task.key for task in tasks}) == len(tasks)
    )


def test_rows_of_table_1_are_evaluated_through_both_backward_passes_and_others_once(
    dataset: Dataset,
) -> None:
    def views(activation: str, attacker: str = "") -> list[str | None]:
        row = record_of(SearchPoint(activation=activation, attacker_activation=attacker))
        return [
            spec.attacker_activation for spec in evaluation_tasks(CONFIG, dataset, row)[0].attacks
        ]

    smooth = "relu_smooth_backward"
    assert views("silu") == views("relu") == [None]
    assert views("relu", smooth) == [None, smooth]
    assert views(smooth, "relu") == views(smooth) == ["relu", smooth]


def test_a_batch_larger_than_the_dataset_is_refused_before_anything_starts(
    dataset: Dataset,
) -> None:
    with pytest.raises(
        ValueError,
        match=r"^training\.global_batch_size must be at most the \d+ training images, got 4096$",
    ):
        final_task(dataset, changed(CONFIG, "training", global_batch_size=4096))


def test_a_result_is_made_only_on_the_processor_or_gpu_it_is_recorded_under() -> None:
    here = numerical_environment(accelerator="", threads=1, slots=8)
    require_environment(here)
    with pytest.raises(
        ValueError,
        match=(
            r"computes with \w+, the driver's with OTHER, and their bits differ; "
            r".*ATEN_CPU_CAPABILITY"
        ),
    ):
        require_environment(here | {"device": "cpu:OTHER"})
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError,
            match=r"accelerator must be a part of the name of this node's GPU, "
            r"'none that torch can use', got 'H200'",
        ):
            require_environment(here | {"device": "cuda:H200"})


def test_a_training_names_its_files_relative_to_the_storage_and_is_evaluated_where_that_was_moved(
    dataset: Dataset, once: tuple[Path, list[int]], trained: Record, records: Records
) -> None:
    """The records are a copy: they lie in another folder than the training was made in."""
    assert trained.payload["path"].startswith("checkpoints/train/")
    state = (path for path in (once[0] / "state").rglob("*") if path.is_file())
    assert str(once[0]).encode() not in b"".join(path.read_bytes() for path in state)
    (first, *_) = evaluation_tasks(CONFIG, dataset, trained)
    shutil.move(once[0], once[0].with_name("away"))
    try:
        assert evaluate_and_commit(first, records).payload["n"] == first.last - first.first
    finally:
        shutil.move(once[0].with_name("away"), once[0])


def test_a_model_that_was_trained_again_to_the_same_weights_keeps_its_shards_and_its_card(
    dataset: Dataset, trained: Record, records: Records
) -> None:
    """The record was moved away as a message said; the new one names another folder."""
    made = trained
    (first, *_) = evaluation_tasks(CONFIG, dataset, made)
    shard = evaluate_and_commit(first, records)
    card = {"weights": made.payload["sha256"]}
    carded = records.commit(
        CARD,
        "c",
        **filled(CARD, {"name": made.payload["name"], "card": {"verdict": "PASS"}}, card),
        seconds=0.0,
    )
    records.storage.move(f"state/train/{made.key}.json", f"away/{made.key}.json")
    again = train_and_commit(final_task(dataset), records)
    assert (
        again.payload["path"] != made.payload["path"]
        and again.payload["sha256"] == made.payload["sha256"]
    )
    assert evaluate_and_commit(evaluation_tasks(CONFIG, dataset, again)[0], records) == shard
    assert card_of([carded], again.payload["sha256"])["verdict"] == "PASS"
    (task, *_) = card_tasks(CONFIG, dataset, [again], {})
    assert task.key == card_tasks(CONFIG, dataset, [made], {})[0].key


def test_a_sweep_refuses_a_data_set_that_is_not_the_one_it_began_with(tmp_path: Path) -> None:
    uri = dataset_uri(CONFIG, Storage.at(tmp_path))
    write_dataset(DATASETS["digits"], Storage(uri), rows_per_shard=512)
    sweep = Sweep(CONFIG, "s", Storage.at(tmp_path), Storage.at(tmp_path / "s"), ())
    assert prepare(sweep) == prepare(sweep)
    sweep.records.commit(
        SEARCH, "k", inputs={}, payload={}, seconds=0.0
    )  # something rests on these images
    manifest = Storage(uri).read_json("manifest.json")
    Storage(uri).write_json("manifest.json", sealed(manifest | {"mean": [0.9]}))
    for read in (prepare, lambda sweep: committed_inputs(sweep, "search")):
        with pytest.raises(
            ValueError,
            match=(
                r"manifest\.json is not the manifest that the sweep in .* began with; restore the "
                r"folder"
            ),
        ):
            read(sweep)


def test_a_sweep_has_one_identity_wherever_it_lies(tmp_path: Path) -> None:
    ours, other = (
        Sweep(CONFIG, name, Storage.at(tmp_path), Storage.at(tmp_path / name), ()).identity
        for name in ("a", "b")
    )
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    assert (
        Sweep(CONFIG, "c", Storage.at(tmp_path), Storage.at(tmp_path / "c"), ()).identity
        == ours
        != other
    )


HUNDRED = Dataset(uri="", hash="d", manifest={"splits": {"test": 100}})


def hundred(*, shuffled: bool) -> list[EvaluationTask]:
    return [
        EvaluationTask(
            checkpoint="c",
            checkpoint_sha256="w",
            name="n",
            attacks=(),
            first=first,
            last=first + 20,
            seed=3,
            slots=32,
            dataset=HUNDRED,
            environment={"device": "cpu"},
            shuffled=shuffled,
        )
        for first in range(0, 100, 20)
    ]


def commit_shard(task: EvaluationTask, records: Records, *, robust: int) -> None:
    payload = {"name": task.name, "n": task.last - task.first, "robust": robust}
    made = filled(EVALUATE, payload, task.inputs)
    records.commit(EVALUATE, task.key, **made, seconds=1.0)


def test_only_shards_without_a_gap_are_a_sample_and_all_lower_the_bound(tmp_path: Path) -> None:
    tasks, records = hundred(shuffled=True), Records(Storage.at(tmp_path))
    committed = Committed(tasks, records)
    assert str(committed.look()) == "" and not committed.look().narrow(1.0)
    commit_shard(tasks[3], records, robust=0)
    found = committed.look()
    assert found.at_most == pytest.approx(0.8) and found.interval == (0.0, 1.0)
    assert str(found) == "robust at most 80.0 %" and not found.narrow(1.0)
    commit_shard(tasks[0], records, robust=15)
    found = committed.look()
    assert (found.seen, found.robust, found.broken) == (20, 15, 25)
    assert found.interval == anytime_interval(15, 20, total=100)
    low, high = found.interval
    assert found.narrow(high - low) and not found.narrow(high - low - 0.01)
    assert committed.count == 2 and committed.without_gap() == tasks[:1]


def test_images_in_their_own_order_have_a_bound_and_no_interval(tmp_path: Path) -> None:
    tasks, records = hundred(shuffled=False), Records(Storage.at(tmp_path))
    commit_shard(tasks[0], records, robust=5)
    found = Committed(tasks, records).look()
    assert found.interval == (0.0, found.at_most) == (0.0, 0.85)
    assert str(found) == "robust at most 85.0 %"


def test_shuffled_shards_hold_every_row_once_in_an_order_of_the_seed() -> None:
    rows = [rows_of(task).tolist() for task in hundred(shuffled=True)]
    assert sorted(chain(*rows)) == list(range(100))
    assert all(part == sorted(part) for part in rows) and rows[0] != list(range(20))
    assert set(chain(*rows[:2])) == set(sampled_rows(100, 40, seed=3).tolist())
    in_order = hundred(shuffled=False)
    assert torch.equal(rows_of(in_order[1]), torch.arange(20, 40))
    assert "shuffled" not in in_order[0].inputs
