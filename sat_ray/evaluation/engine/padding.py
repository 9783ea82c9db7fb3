"""Padding of model calls: all calls of an attack have the same number of rows."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sat_ray.attacks.base import Model

# kernels take rows in blocks; the remaining rows go through other code, which rounds differently
BLOCK = 4


def call_rows(slots: int) -> int:
    """Return the rows of a full call: the slots, above one block rounded up to whole blocks."""
    return slots if slots <= BLOCK else -(-slots // BLOCK) * BLOCK


def pad(values: Tensor, rows: int) -> Tensor:
    """Repeat the first row until there are exactly `rows` rows."""
    missing = rows - len(values)
    if missing == 0:
        return values
    return torch.cat([values, values[:1].expand(missing, *values.shape[1:])])


def has_fixed_rows(model: "Model") -> bool:
    """Return whether a model accepts full calls only, as compiled kernels do.

    Such a model has an attribute `fixed_rows` that is true.
    """
    return bool(getattr(model, "fixed_rows", False))
