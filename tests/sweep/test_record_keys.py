"""The keys of records stay: a sweep that was begun before a change goes on after it."""

import dataclasses
from typing import Any

import pytest

from sat_ray.attacks import AttackSpec
from sat_ray.evaluation.card import CardSettings
from sat_ray.models import ModelSpec
from sat_ray.sweep.records.store import record_key
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import (
    CARD,
    SEARCH,
    STRONG,
    TRAIN,
    CardTask,
    Dataset,
    EvaluationTask,
    TrainingTask,
)
from sat_ray.threat import ThreatModel
from sat_ray.training.settings import ADDED, TrainingSettings

ENVIRONMENT = {
    "torch": "2.14.1",
    "device": "cpu:AVX512",
    "threads": 1,
    "precision": "float32",
    "slots": 64,
}
DIGITS = Dataset(uri="/data/digits", hash="d1", manifest={"dataset": "digits"})
FLOWERS = Dataset(uri="/data/flowers", hash="f1", manifest={"dataset": "my_data:flowers"})
LINF = ThreatModel("linf", 16 / 255)
PGD = AttackSpec(threat_model=LINF, steps=100, step_size=2 / 255)
SILU = SearchPoint(activation="silu", alpha=2.0)
SMOOTH_BACKWARD = SearchPoint(activation="relu", attacker_activation="relu_smooth_backward")


SHARED: dict[str, Any] = {
    "checkpoint_sha256": "w1",
    "name": "silu-a2-s3",
    "seed": 7,
    "slots": 64,
    "dataset": DIGITS,
    "environment": ENVIRONMENT,
    "checkpoint": "checkpoints/train/silu",
}


def training(configuration: SearchPoint, dataset: Dataset = DIGITS, **changes: Any) -> TrainingTask:
    spec = ModelSpec(
        name="small_resnet",
        activation=configuration.activation,
        alpha=configuration.alpha,
        num_classes=10,
        in_channels=1,
        width=8,
        mean=(0.5,),
        std=(0.25,),
    )
    whole = TrainingTask(
        stage=TRAIN,
        configuration=configuration,
        seed=3,
        until=10,
        model=spec,
        training=TrainingSettings(epochs=10),
        threat_model=LINF,
        slots=64,
        dataset=dataset,
        environment=ENVIRONMENT,
    )
    return dataclasses.replace(whole, **changes)


def evaluation(**changes: Any) -> EvaluationTask:
    whole = EvaluationTask(attacks=(PGD,), first=0, last=450, **SHARED)
    return dataclasses.replace(whole, **changes)


def card(**changes: Any) -> CardTask:
    examined = {"attack": PGD, "configuration": SILU, "settings": CardSettings(images=48)}
    return dataclasses.replace(CardTask(**examined, **SHARED), **changes)


OWN = ("my_data:flowers", "my_net:net")
KEYS = {
    "a finalist": "b39e9a6a3f19308382d3cfbb9bb3d6cd",
    "a trial with another attacker": "c5b94dd1ea2b2271368bc5b4c467a745",
    "a training on a user-defined dataset": "5cae365a324198fb7235903f5d7acbaf",
    "a shard": "84365b16a89ca24d66ffabe10a2f425e",
    "a sample of a user-defined model": "78bd73198e9ce6f47a1aeba84d634da6",
    "the strong attacks on a shard": "9c9cd9ad532601efeaa15a302031b52e",
    "a card": "b2fe0e0110d66a3cf582e3c02c5c6bbd",
    "a card of a user-defined model": "2fe8fb3b57639e2f8b0637fede3d51f7",
}


def tasks() -> dict[str, TrainingTask | EvaluationTask | CardTask]:
    """Return one task of every kind, and the same tasks on code of the user's own."""
    return {
        "a finalist": training(SILU),
        "a trial with another attacker": training(SMOOTH_BACKWARD, stage=SEARCH, until=3),
        "a training on a user-defined dataset": training(SILU, FLOWERS),
        "a shard": evaluation(),
        "a sample of a user-defined model": evaluation(sample=100, split="val", user_defined=OWN),
        "the strong attacks on a shard": evaluation(stage=STRONG, cascade=True, after=evaluation()),
        "a card": card(),
        "a card of a user-defined model": card(user_defined=OWN),
    }


@pytest.mark.parametrize("name", KEYS)
def test_the_key_of_a_fixed_task_stays(name: str) -> None:
    task = tasks()[name]
    assert task.key == KEYS[name]
    stage = CARD if isinstance(task, CardTask) else task.stage
    assert task.key == record_key(stage, task.inputs)


def test_a_setting_that_came_later_changes_the_key_where_it_is_set_and_only_there() -> None:
    assert ADDED and set(training(SILU).inputs["training"]).isdisjoint(ADDED)
    changed = TrainingSettings(epochs=10, attack_label_smoothing=0.1)
    task = training(SILU, training=changed)
    assert task.inputs["training"]["attack_label_smoothing"] == 0.1
    assert task.key != KEYS["a finalist"]
