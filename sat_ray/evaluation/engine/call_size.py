"""The size of a model call: its rows, and the CPU threads that compute it.

The threads of a call wait for each other after every kernel. In a small call that costs more than a
second thread gains, and on a shared machine, where a thread may be without a core for milliseconds,
many times more. Small calls also spend much of their time between kernels, so that more rows pay
for a small network. Both numbers follow from the operations of a forward pass and from nothing that
depends on time or on the number of images: every shard of an evaluation gets the same bits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sat_ray.attacks.base import Model
from sat_ray.data.pixels import to_pixels
from sat_ray.evaluation.engine.padding import has_fixed_rows

FEWEST_ROWS = 32
MOST_ROWS = 256
# operations of a forward pass of a whole call
ENOUGH = 100_000_000  # above it, more rows gain little
PER_THREAD = 250_000_000  # for which a further thread pays


def rows_for(
    model: Model, shape: tuple[int, ...], *, device: torch.device, fewest: int = FEWEST_ROWS
) -> int:
    """Return how many rows a call should have: `fewest`, or on a CPU more for a small network.

    shape: (C, H, W) of an image. It is `fewest` doubled until a call is large enough.
    """
    return _rows(_operations(model, shape, device=device), fewest=fewest)


@contextmanager
def sized_calls(
    model: Model, shape: tuple[int, ...], *, slots: int | None, device: torch.device
) -> Iterator[int]:
    """Yield the rows of every call, with as many CPU threads, of those set, as pay for such calls.

    shape: (C, H, W) of an image; slots: the rows, None for those of `rows_for`. Where the
    operations cannot be counted, no thread is taken away.
    """
    allowed = torch.get_num_threads()
    matters = slots is None or allowed > 1
    operations = _operations(model, shape, device=device) if matters else 0
    rows = slots or _rows(operations, fewest=FEWEST_ROWS)
    pay = max(1, rows * operations // PER_THREAD) if operations else allowed
    with cpu_threads(min(allowed, pay)):
        yield rows


def _rows(operations: int, *, fewest: int) -> int:
    rows = fewest
    while operations and rows * operations < ENOUGH and 2 * rows <= MOST_ROWS:
        rows *= 2
    return rows


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def count_operations(model: Model, x: Tensor) -> int:
    """Return the operations of model(x) in convolutions and matrix products.

    A multiplication and an addition count as two. On torch's meta device nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())


def _operations(model: Model, shape: tuple[int, ...], *, device: torch.device) -> int:
    """Count the operations for one image; 0 where it cannot be counted, or not on a CPU."""
    if device.type != "cpu" or has_fixed_rows(model):
        return 0
    try:
        with torch.random.fork_rng(devices=[]):
            return count_operations(model, _black(shape))
    except Exception as reason:  # a model exported for one number of rows
        logging.getLogger(__name__).info("the operations of the model are not known: %s", reason)
        return 0


def _black(shape: tuple[int, ...]) -> Tensor:
    return to_pixels(torch.zeros(1, *shape, dtype=torch.uint8))
