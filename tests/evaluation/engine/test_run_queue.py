"""The queue of runs against its rule, under every order in which runs may end: nothing needed is
left out, nothing is flown in vain.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ray.evaluation.engine.restarts import RunQueue


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
    queue, flying, begun = RunQueue(images, runs=runs), set[int](), list[int]()
    known = [runs] * images
    while True:
        for ahead in (False, True):
            for number in queue.take(slots - len(flying), ahead=ahead).tolist():
                run, image = divmod(number, images)
                assert known[image] == runs, "a run of an image that is known to be broken"
                assert ahead == any(other % images == image for other in flying)
                flying.add(number)
                begun.append(number)
        if not flying:
            break
        number = data.draw(st.sampled_from(sorted(flying)), label="ends")
        run, image = divmod(number, images)
        flying.discard(number)
        queue.end(numbers(number))
        if run >= breaks[image]:  # a later run may break the image too, and end first
            known[image] = min(known[image], run)
            queue.note_broken(numbers(number))
        in_vain = {other for other in flying if queue.in_vain(numbers(other)).item()}
        assert in_vain == {other for other in flying if other // images > known[other % images]}
        queue.end(numbers(*in_vain))
        flying -= in_vain
    assert len(begun) == len(set(begun))
    needed = {
        run * images + image
        for image in range(images)
        for run in range(min(runs, breaks[image] + 1))
    }
    assert needed <= set(begun)


def test_runs_whose_predecessors_failed_come_before_those_ahead_of_need() -> None:
    queue = RunQueue(3, runs=3)
    assert queue.take(2).tolist() == [0, 1]
    assert queue.take(9).tolist() == [2]
    assert queue.take(9).tolist() == []
    assert queue.take(2, ahead=True).tolist() == [3, 4]
    queue.end(numbers(2))
    assert queue.take(9).tolist() == [5]
    queue.end(numbers(0))
    assert queue.take(9).tolist() == [], "run 1 of image 0 is still in flight"
    queue.end(numbers(3))
    assert queue.take(9).tolist() == [6]


def test_no_image_has_no_run() -> None:
    queue = RunQueue(0, runs=2)
    assert len(queue.take(4)) == len(queue.take(4, ahead=True)) == 0
    queue.note_broken(numbers())
    assert queue.in_vain(numbers(-1, -1)).tolist() == [False, False]


@pytest.mark.parametrize("number", [-1, 1])
def test_an_empty_slot_and_the_breaking_run_itself_are_not_in_vain(number: int) -> None:
    queue = RunQueue(1, runs=3)
    queue.note_broken(numbers(1))
    assert queue.in_vain(numbers(number, 2)).tolist() == [False, True]
