"""Exact cycle detection for deterministic iterations: once a point repeats bit for bit, nothing new can be visited.

A 64-bit hash of every point is kept. A hash seen before proposes a period p; the point is then stored, and the cycle is confirmed only
when the point p steps later equals it in every bit. A false proposal costs nothing but the wait, so the result is exact.
"""

import torch
from torch import Tensor

from sat_ray.utils.compile import fusable


class CycleDetector:
    """Watch sequences of points for exact repetition.

    rows: how many sequences; steps: their length; device: of the points, which stay there. Hashes and answers are on the CPU.
    """

    def __init__(self, rows: int, steps: int, *, device: torch.device) -> None:
        self.device = device
        self.hashes = torch.zeros(rows, steps + 2, dtype=torch.int64)
        self.known = torch.zeros(rows, steps + 2, dtype=torch.bool)
        self.period = torch.zeros(rows, dtype=torch.int64)
        self.due = torch.full((rows,), -1, dtype=torch.int64)
        self.kept: dict[int, Tensor] = {}
        self.weights: Tensor | None = None

    def forget(self, rows: Tensor) -> None:
        """Start afresh: these rows are other sequences now."""
        self.known[rows] = False
        self.period[rows] = 0
        self.due[rows] = -1
        for row in rows.tolist():
            self.kept.pop(row, None)

    def observe(self, points: Tensor, step: Tensor, rows: Tensor) -> Tensor:
        """Look at one point of some sequences; return their confirmed periods, 0 where there is none, (L,) int64.

        points: (L, ...) float32; step: (L,) int64, the point's number, growing by one from call to call in a row (or by whole periods);
        rows: (L,) int64, whose point it is, each row once; -1 for a point of none.
        """
        bits = points.reshape(len(points), -1).contiguous().view(torch.int32)
        if self.weights is None:
            generator = torch.Generator().manual_seed(0x5A7)
            odd = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
            self.weights = odd.to(self.device)
        digest, step = _digest(bits, self.weights).cpu(), step.cpu()
        answer = torch.zeros_like(rows)
        for slot in torch.nonzero((rows >= 0) & (self.due[rows] == step)).flatten().tolist():
            row = int(rows[slot])
            if torch.equal(bits[slot], self.kept.pop(row)):
                answer[slot] = self.period[row]
        self._propose(bits, digest, step, rows)
        return answer

    def _propose(self, bits: Tensor, digest: Tensor, step: Tensor, rows: Tensor) -> None:
        slots = torch.nonzero(rows >= 0).flatten()
        digest, step, rows = digest[slots], step[slots], rows[slots]
        place, column = torch.nonzero(
            self.hashes[rows] == digest[:, None], as_tuple=True
        )  # hardly ever any
        known = self.known[rows[place], column] & (self.due[rows[place]] < step[place])
        for one, earlier in zip(place[known].tolist(), column[known].tolist(), strict=True):
            row, now = (
                int(rows[one]),
                int(step[one]),
            )  # the latest earlier occurrence, which comes last, gives the shortest period
            self.period[row], self.due[row], self.kept[row] = (
                now - earlier,
                2 * now - earlier,
                bits[slots[one]].clone(),
            )
        column = step.clamp_max(self.hashes.shape[1] - 1)
        self.hashes[rows, column] = digest
        self.known[rows, column] = True


@fusable
def _digest(bits: Tensor, weights: Tensor) -> Tensor:
    """Hash rows (L, D) int32; whole numbers, so in any order of the sum."""
    return (bits * weights).sum(dim=1)
