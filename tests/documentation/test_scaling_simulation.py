"""The simulation of trainings and sweeps against closed forms and brute force; no timings."""

import itertools
import random
from typing import Any

import pytest
import simulation


def no_exchange(size: float, workers: int) -> float:
    """Exchange in no time."""
    return 0.0


def seconds_of(*, workers: int, **changes: Any) -> dict[str, float]:
    """Return the simulated seconds of a training of 5 epochs of 7 steps of 16 groups."""
    step = simulation.StepParts(**{"group": 0.25} | changes)
    parts = simulation.TrainingParts(step=step, epochs=5, steps=7, groups=16)
    exchange = changes.pop("exchange", no_exchange)
    found: dict[str, float] = simulation.training_time(
        parts, workers=workers, all_reduce=exchange, rng=random.Random(1)
    )
    return found


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_equal_workers_without_an_exchange_scale_exactly(workers: int) -> None:
    found = seconds_of(workers=workers)
    assert found.pop("compute") == pytest.approx(5 * 7 * 16 * 0.25 / workers)
    assert sum(found.values()) == pytest.approx(0)


def test_workers_that_share_cores_take_their_work_over_the_cores() -> None:
    alone = sum(seconds_of(workers=1, cores=2).values())
    assert sum(seconds_of(workers=2, cores=2).values()) == pytest.approx(alone / 2)
    assert sum(seconds_of(workers=8, cores=2).values()) == pytest.approx(alone / 2)


def test_a_worker_with_one_group_more_is_waited_for() -> None:
    assert simulation.groups_of_workers(16, 3) == [5, 5, 6]
    assert seconds_of(workers=3)["compute"] == pytest.approx(5 * 7 * 6 * 0.25)


def test_the_slowest_of_n_workers_is_the_expected_maximum_of_n_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulation, "DRAWN_STEPS", 4000)
    spread = [0.9, 1.0, 1.0, 1.1, 1.4]
    for workers in (1, 2, 8):
        found = seconds_of(workers=workers, spread=spread)
        # E max = sum over sorted draws x_i of x_i ((i / m)^n - ((i - 1) / m)^n)
        expected = sum(
            x * ((i + 1) ** workers - i**workers) / len(spread) ** workers
            for i, x in enumerate(sorted(spread))
        )
        slowest = (found["compute"] + found["stragglers"]) / found["compute"]
        assert slowest == pytest.approx(expected, rel=0.01)


def test_what_the_backward_pass_hides_is_not_waited_for() -> None:
    def exchange(size: float, workers: int) -> float:
        return size / 2**30

    def exposed(workers: int = 8, **parts: float) -> float:
        step = simulation.StepParts(group=1.0, **parts)
        found: float = simulation.exposed_exchange(step, workers=workers, all_reduce=exchange)
        return found

    gradients = 2.0**29
    assert exposed(workers=1, gradients=gradients) == 0
    assert exposed(gradients=gradients) == pytest.approx(0.5)
    assert exposed(gradients=gradients, hidden=0.3) == pytest.approx(0.2)
    last = exchange(simulation.LAST_BUCKET, 8)
    assert exposed(gradients=gradients, hidden=9.0) == pytest.approx(last)
    assert exposed(gradients=gradients, hidden=9.0, buffers=2.0**28) == pytest.approx(last + 0.25)


def test_images_are_waited_for_only_where_reading_takes_longer_than_the_step() -> None:
    assert seconds_of(workers=4, reading=0.2)["reading"] == 0
    waited = seconds_of(workers=4, reading=0.35)["reading"]
    assert waited == pytest.approx(5 * 7 * 4 * (0.35 - 0.25))


def test_an_all_reduce_is_the_ring_or_the_tree_whichever_ends_first() -> None:
    fast = {"inside": 1e11, "between": 1e10, "inside_latency": 0.0, "between_latency": 0.0}
    ring = simulation.Network(per_node=8, **fast)
    assert ring.all_reduce(1e9, 1) == 0
    # 2 (n - 1) / n x bytes / bandwidth (Patarasuk and Yuan 2009)
    assert ring.all_reduce(1e9, 8) == pytest.approx(2 * 7 / 8 * 1e9 / 1e11)
    between = 2 * 3 / 4 * (1e9 / 8) / 1e10
    assert ring.all_reduce(1e9, 32) == pytest.approx(2 * 7 / 8 * 1e9 / 1e11 + between)
    slow = simulation.Network(
        per_node=8, **fast | {"inside_latency": 1e-6, "between_latency": 1e-3}
    )
    # one byte over 32 nodes: 2 log2(32) hops between nodes and 2 log2(8) in each
    assert slow.all_reduce(1.0, 256) == pytest.approx(2 * 5 * 1e-3 + 2 * 3 * 1e-6, rel=1e-3)


def test_checkpoints_wait_for_the_write_before_them() -> None:
    def checkpoints(write: float) -> float:
        step = simulation.StepParts(group=1.0)
        parts = simulation.TrainingParts(
            step=step,
            epochs=4,
            steps=10,
            groups=1,
            validate_every=4,
            checkpoint_every=5,
            copy=0.5,
            write=write,
        )
        found: dict[str, float] = simulation.training_time(
            parts, workers=1, all_reduce=no_exchange, rng=random.Random(0)
        )
        return found["checkpoints"]

    assert checkpoints(write=5.0) == pytest.approx(8 * 0.5)  # written while 5 steps compute
    assert checkpoints(write=7.5) == pytest.approx(8 * (0.5 + 7.5 - 5.5))


def best_of_all_orders(seconds: tuple[float, ...], workers: int) -> float:
    """Return the shortest makespan of greedy scheduling over all orders of the tasks."""

    def greedy(order: tuple[float, ...]) -> float:
        ends = [0.0] * workers
        for task in order:
            first = ends.index(min(ends))
            ends[first] += task
        return max(ends)

    return min(greedy(order) for order in itertools.permutations(seconds))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_tasks_go_to_the_worker_that_is_free_first(workers: int) -> None:
    rng = random.Random(workers)
    for _ in range(20):
        seconds = tuple(float(rng.randint(1, 9)) for _ in range(5))
        tasks = [(1, one) for one in seconds]
        ends = [0.0] * workers
        for one in seconds:
            ends[ends.index(min(ends))] += one
        found = simulation.makespan([[tasks]], workers)
        assert found == max(ends)
        best = best_of_all_orders(seconds, workers)
        longest_first = [(1, one) for one in sorted(seconds, reverse=True)]
        # Graham 1969: longest tasks first end within 4 / 3 of the best schedule
        assert best <= simulation.makespan([[longest_first]], workers) <= 4 / 3 * best


def test_stages_follow_each_other_and_sweeps_fill_each_others_gaps() -> None:
    first = [[(1, 4.0)], [(4, 1.0), (2, 1.0)]]
    assert simulation.makespan([first], 4) == 4 + 1 + 1
    # the second sweep's tasks run on the three workers that the first leaves idle
    assert simulation.makespan([first, [[(1, 2.0)] * 6]], 4) == 4 + 1 + 1
    with pytest.raises(AssertionError, match="more workers"):
        simulation.makespan([[[(5, 1.0)]]], 4)
