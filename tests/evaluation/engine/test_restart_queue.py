"""The restart queue against its rule, under every order in which runs may end.

Nothing needed is left out, and nothing redundant is begun.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ray.evaluation.engine.restarts import RestartQueue


def numbers(*values: int) -> torch.Tensor:
    """Write numbers of runs as a tensor."""
    return torch.tensor(values, dtype=torch.int64)


@given(st.data(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_every_needed_run_is_begun_once_and_none_after_a_known_break(
    data: st.DataObject, images: int, runs: int, slots: int
) -> None:
    breaks = [
        data.draw(st.integers(0, runs), label=f"the run that breaks image {image}")
        for image in range(images)
    ]
    queue, running, begun = RestartQueue(images, runs=runs), set[int](), list[int]()
    known = [runs] * images
    while True:
        for ahead in (False, True):
            for number in queue.take(slots - len(running), ahead=ahead).tolist():
                run, image = divmod(number, images)
                assert known[image] == runs, "a run of an image that is known to be broken"
                assert ahead == any(other % images == image for other in running)
                running.add(number)
                begun.append(number)
        if not running:
            break
        number = data.draw(st.sampled_from(sorted(running)), label="ends")
        run, image = divmod(number, images)
        running.discard(number)
        queue.end(numbers(number))
        if run >= breaks[image]:  # a later run may break the image too, and end first
            known[image] = min(known[image], run)
            queue.mark_broken(numbers(number))
        redundant = {other for other in running if queue.redundant(numbers(other)).item()}
        assert redundant == {other for other in running if other // images > known[other % images]}
        queue.end(numbers(*redundant))
        running -= redundant
    assert len(begun) == len(set(begun))
    needed = {
        run * images + image
        for image in range(images)
        for run in range(min(runs, breaks[image] + 1))
    }
    assert needed <= set(begun)


def test_runs_whose_predecessors_failed_come_before_those_ahead_of_need() -> None:
    queue = RestartQueue(3, runs=3)
    assert queue.take(2).tolist() == [0, 1]
    assert queue.take(9).tolist() == [2]
    assert queue.take(9).tolist() == []
    assert queue.take(2, ahead=True).tolist() == [3, 4]
    queue.end(numbers(2))
    assert queue.take(9).tolist() == [5]
    queue.end(numbers(0))
    assert queue.take(9).tolist() == [], "run 1 of image 0 has not ended"
    queue.end(numbers(3))
    assert queue.take(9).tolist() == [6]


def test_no_image_has_no_run() -> None:
    queue = RestartQueue(0, runs=2)
    assert len(queue.take(4)) == len(queue.take(4, ahead=True)) == 0
    queue.mark_broken(numbers())
    assert queue.redundant(numbers(-1, -1)).tolist() == [False, False]


@pytest.mark.parametrize("number", [-1, 1])
def test_an_empty_slot_and_the_breaking_run_itself_are_not_redundant(number: int) -> None:
    queue = RestartQueue(1, runs=3)
    queue.mark_broken(numbers(1))
    assert queue.redundant(numbers(number, 2)).tolist() == [False, True]
