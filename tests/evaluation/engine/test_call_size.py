"""Rows and threads of a model call follow from its operations, and from nothing else."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec
from sat_ray.data.split import Split
from sat_ray.evaluation.engine.call_size import (
    MOST_ROWS,
    PER_THREAD,
    count_operations,
    rows_for,
    sized_calls,
)
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel

CPU = torch.device("cpu")
BALL = ThreatModel("linf", 40 / 255)


def network(name: str = "resnet18", **fields: Any) -> Normalized:
    return build_model(name, num_classes=10, stem="small", seed=0, **fields).eval()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_network_gets_more_rows_and_a_large_one_the_fewest(
    digits_model: Normalized,
) -> None:
    assert rows_for(digits_model, (1, 8, 8), device=CPU) == MOST_ROWS
    assert rows_for(network(), (3, 32, 32), device=CPU) == 32
    assert rows_for(network(), (3, 32, 32), device=CPU, fewest=64) == 64


def test_a_model_for_one_number_of_rows_gets_the_fewest() -> None:
    def fixed(x: Tensor) -> Tensor:
        assert len(x) == 32
        return x.flatten(1)

    assert rows_for(fixed, (1, 8, 8), device=CPU) == 32


def test_counting_changes_no_random_number() -> None:
    def dropping(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x.flatten(1)) @ torch.ones(64, 10)

    state = torch.get_rng_state()
    rows_for(dropping, (1, 8, 8), device=CPU)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_taken_away_from_small_calls_alone_and_given_back(
    digits_model: Normalized,
) -> None:
    with sized_calls(digits_model, (1, 8, 8), slots=256, device=CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    large = network()
    operations = count_operations(large, torch.zeros(1, 3, 32, 32))
    for slots, threads in ((32, 2), (1, min(2, operations // PER_THREAD))):
        with sized_calls(large, (3, 32, 32), slots=slots, device=CPU):
            assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("two_threads")
def test_outcomes_of_a_small_network_do_not_depend_on_the_threads(
    digits_model: Normalized, held_out: Split
) -> None:
    spec = AttackSpec(threat_model=BALL, steps=10, step_size=8 / 255)
    images = held_out.take(slice(0, 24))
    arrays = (images.images, images.labels, images.image_ids)
    with_two = evaluate(digits_model, *arrays, attacks=[spec])
    torch.set_num_threads(1)
    assert with_two.equals(evaluate(digits_model, *arrays, attacks=[spec]))
    assert with_two.equals(evaluate(digits_model, *arrays, attacks=[spec], slots=MOST_ROWS))
