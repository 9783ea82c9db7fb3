"""Calls of a model with fewer rows while slots are empty, where fewer rows give the same bits.

A float32 kernel may round differently for another number of rows, and for rows in another place. It chooses the order of its additions by
shapes and never by values. So one comparison of every bit of logits and gradients, at points of the attack and with the rows moved,
tells which numbers of rows may stand for a full call. Where none may, every call is full.
"""

import logging
from functools import partial

import torch
from torch import Tensor

from sat_ray.attacks.base import Model
from sat_ray.models.parity import logits_and_gradient

BLOCK = 4  # kernels take rows in blocks; the rows left over go through other code, which rounds differently
FEWEST = (1, 2)  # rows: 16-bit kernels often compute so few as they compute a block
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of a full call, where that is whole blocks


def call_rows(slots: int) -> int:
    """Return the rows of a full call: the slots, above one block rounded up to whole blocks."""
    return slots if slots <= BLOCK else -(-slots // BLOCK) * BLOCK


def pad(values: Tensor, rows: int) -> Tensor:
    """Repeat the first row until there are exactly `rows` rows."""
    missing = rows - len(values)
    return (
        values
        if missing == 0
        else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
    )


def has_fixed_rows(model: Model) -> bool:
    """Say whether a model wants full calls only, as compiled kernels do: its attribute `fixed_rows` is true."""
    return bool(getattr(model, "fixed_rows", False))


class Narrowing:
    """A model as the slots see it: called on the rows of those slots alone that hold a run, in the fewest rows that give the same bits.

    model: as an attack sees it; one that `has_fixed_rows` gets full calls only.
    gradients: whether the attack asks for them; a model that is never differentiated may have none.
    """

    def __init__(self, model: Model, *, slots: int, gradients: bool = True) -> None:
        self.model, self.slots, self.full, self.gradients = (
            model,
            slots,
            call_rows(slots),
            gradients,
        )
        blocks = {
            int(rows)
            for share in SHARES
            if (rows := self.full * share) >= BLOCK and rows % BLOCK == 0
        }
        few = {rows for rows in FEWEST if rows < self.full}
        self.candidates = [] if has_fixed_rows(model) else sorted(blocks | few)
        self.proven: list[int] | None = None

    def over(self, held: Tensor, x_adv: Tensor) -> Model:
        """Return the model for points (L, C, H, W), of which those of the held slots matter; the others get logits 0.

        held: (L,) bool on the CPU; x_adv: points to compare the numbers of rows at, should it be the first time.
        """
        count = int(held.sum())
        rows = self._fewest(count, x_adv)
        if rows == self.slots:
            return self.model
        return partial(self._call, count, pad(torch.nonzero(held).flatten(), rows).to(x_adv.device))

    def _call(self, count: int, rows: Tensor, x: Tensor) -> Tensor:
        logits = self.model(x.index_select(0, rows))
        return logits.new_zeros(len(x), *logits.shape[1:]).index_copy(
            0, rows[:count], logits[:count]
        )

    def _fewest(self, count: int, x_adv: Tensor) -> int:
        if not any(count <= rows for rows in self.candidates):
            return self.full
        if self.proven is None:
            self.proven = self._compare(pad(x_adv, self.full))
        return next((rows for rows in self.proven if count <= rows), self.full)

    def _compare(self, x: Tensor) -> list[int]:
        """Return the candidates whose calls give the bits of the full call. x: (full, C, H, W)."""
        full = [values.flip(0) for values in self._found(x)]
        moved = x.flip(0)
        return [
            rows
            for rows in self.candidates
            if self._same_bits(moved[:rows], [values[:rows] for values in full])
        ]

    @torch.no_grad()
    def _found(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return logits and, where they are asked for, gradients."""
        return (
            tuple(logits_and_gradient(self.model, x).values())
            if self.gradients
            else (self.model(x).float(),)
        )

    def _same_bits(self, x: Tensor, expected: list[Tensor]) -> bool:
        try:
            found = self._found(x)
        except Exception as reason:  # a model exported for one number of rows
            logging.getLogger(__name__).info(
                "the model is not called with %d rows: %s", len(x), reason
            )
            return False
        return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
