"""Exact cycle detection for deterministic iterations.

Once a point repeats bit for bit, nothing new can be visited. A 64-bit hash of every point is kept.
A hash that was seen before proposes a period p; the point is then stored. The cycle is confirmed
only when the point p steps later equals it in every bit. A false proposal costs nothing but the
wait, so the result is exact.
"""

import torch
from torch import Tensor

from sat_ray.utils.compile import fusable


class CycleDetector:
    """Detect exact repetition in sequences of points.

    rows: how many sequences; steps: their length; device: of the points, which stay there. Hashes
    and answers are on the CPU.
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
        """Start new sequences in these rows."""
        self.known[rows] = False
        self.period[rows] = 0
        self.due[rows] = -1
        for row in rows.tolist():
            self.kept.pop(row, None)

    def observe(self, points: Tensor, step: Tensor, rows: Tensor) -> Tensor:
        """Add a point to some sequences and return their confirmed periods, 0 for none, (L,) int64.

        points: (L, ...) float32; step: (L,) int64, the number of the point, which grows by one
        from call to call in a row (or by whole periods); rows: (L,) int64, the sequence of each
        point, each at most once; -1 for a point of no sequence.
        """
        bits = points.reshape(len(points), -1).contiguous().view(torch.int32)
        digest = _digest(bits, self._weights_of(bits.shape[1])).cpu()
        step = step.cpu()
        answer = torch.zeros_like(rows)
        for slot in torch.nonzero((rows >= 0) & (self.due[rows] == step)).flatten().tolist():
            row = int(rows[slot])
            if torch.equal(bits[slot], self.kept.pop(row)):
                answer[slot] = self.period[row]
        self._propose(bits, digest, step, rows)
        return answer

    def _weights_of(self, length: int) -> Tensor:
        """Return the odd factors of the hash, (D,) int64; the same ones every time."""
        if self.weights is None:
            generator = torch.Generator().manual_seed(0x5A7)
            odd = torch.randint(-(2**62), 2**62, (length,), generator=generator) * 2 + 1
            self.weights = odd.to(self.device)
        return self.weights

    def _propose(self, bits: Tensor, digest: Tensor, step: Tensor, rows: Tensor) -> None:
        slots = torch.nonzero(rows >= 0).flatten()
        digest, step, rows = digest[slots], step[slots], rows[slots]
        # there is hardly ever an equal hash
        place, column = torch.nonzero(self.hashes[rows] == digest[:, None], as_tuple=True)
        known = self.known[rows[place], column] & (self.due[rows[place]] < step[place])
        for one, earlier in zip(place[known].tolist(), column[known].tolist(), strict=True):
            # the latest earlier occurrence comes last and gives the shortest period
            row = int(rows[one])
            now = int(step[one])
            self.period[row] = now - earlier
            self.due[row] = 2 * now - earlier
            self.kept[row] = bits[slots[one]].clone()
        column = step.clamp_max(self.hashes.shape[1] - 1)
        self.hashes[rows, column] = digest
        self.known[rows, column] = True


@fusable
def _digest(bits: Tensor, weights: Tensor) -> Tensor:
    """Hash rows (L, D) int32; sums of integers do not depend on the order."""
    return (bits * weights).sum(dim=1)
