"""Count the floating-point operations of a forward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_operations(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return the operations of model(x) in convolutions and matrix products.

    A multiplication and an addition count as two. On torch's meta device nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops())
