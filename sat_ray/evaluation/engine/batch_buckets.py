"""Model calls with fewer rows while slots are empty, where fewer rows give the same bits.

A float32 kernel may round differently for another number of rows, and for rows in another place.
It chooses the order of its additions by shapes and never by values. So one comparison decides which
numbers of rows (buckets) can replace a full call: all bits of the logits and gradients must be
equal, at points of the attack and with the rows moved. If no bucket passes, every call is full.
"""

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sat_ray.evaluation.engine.padding import BLOCK, call_rows, has_fixed_rows, pad
from sat_ray.models.parity import logits_and_gradient

if TYPE_CHECKING:
    from sat_ray.attacks.base import Model

FEWEST = (1, 2)  # rows: 16-bit kernels often compute so few in the same way as a block
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of a full call, where that is whole blocks


class BatchBuckets:
    """Call a model on the occupied slots alone, in the fewest rows that give the same bits.

    model: as an attack sees it; one that `has_fixed_rows` gets full calls only.
    gradients: whether the attack needs them; a model that is never differentiated may have none.
    """

    def __init__(self, model: "Model", *, slots: int, gradients: bool = True) -> None:
        self.model = model
        self.slots = slots
        self.full = call_rows(slots)
        self.gradients = gradients
        self.candidates = [] if has_fixed_rows(model) else _candidates(self.full)
        self.verified: list[int] | None = None

    def model_for(self, occupied: Tensor, x_adv: Tensor) -> "Model":
        """Return a model for points (L, C, H, W) that computes the occupied slots; others get 0.

        occupied: (L,) bool on the CPU; x_adv: points at which the buckets are compared, once.
        """
        count = int(occupied.sum())
        rows = self._fewest(count, x_adv)
        if rows == self.slots:
            return self.model
        chosen = pad(torch.nonzero(occupied).flatten(), rows).to(x_adv.device)
        return partial(self._call, count, chosen)

    def _call(self, count: int, rows: Tensor, x: Tensor) -> Tensor:
        logits = self.model(x.index_select(0, rows))
        empty = logits.new_zeros(len(x), *logits.shape[1:])
        return empty.index_copy(0, rows[:count], logits[:count])

    def _fewest(self, count: int, x_adv: Tensor) -> int:
        if not any(count <= rows for rows in self.candidates):
            return self.full
        if self.verified is None:
            self.verified = self._compare(pad(x_adv, self.full))
        return next((rows for rows in self.verified if count <= rows), self.full)

    def _compare(self, x: Tensor) -> list[int]:
        """Return the candidates that give the bits of the full call. x: (full, C, H, W)."""
        full = [values.flip(0) for values in self._outputs(x)]
        moved = x.flip(0)
        return [
            rows
            for rows in self.candidates
            if self._same_bits(moved[:rows], [values[:rows] for values in full])
        ]

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and, where the attack needs them, the gradients."""
        if self.gradients:
            return tuple(logits_and_gradient(self.model, x).values())
        return (self.model(x).float(),)

    def _same_bits(self, x: Tensor, expected: list[Tensor]) -> bool:
        try:
            found = self._outputs(x)
        except Exception as reason:  # a model exported for one number of rows
            logging.getLogger(__name__).info(
                "the model is not called with %d rows: %s", len(x), reason
            )
            return False
        return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def _candidates(full: int) -> list[int]:
    """Return the buckets below a full call that are compared with it, ascending."""
    shares = (full * share for share in SHARES)
    blocks = {int(rows) for rows in shares if rows >= BLOCK and rows % BLOCK == 0}
    few = {rows for rows in FEWEST if rows < full}
    return sorted(blocks | few)
