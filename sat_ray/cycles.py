"""Exact cycle detection for deterministic iterations: once a point repeats bit for bit, nothing new can be visited.

A 64-bit hash of every point is kept. A hash seen before proposes a period p; the point is then stored, and the cycle is confirmed only
when the point p steps later equals it in every bit. A false proposal costs nothing but the wait, so the result is exact.
"""

import torch
from torch import Tensor

from sat_ray.compilation import fusable


class CycleDetector:
    """Watch L lanes for exact repetition.

    lanes, steps: sizes of the watch; device: of the points, which stay there. Hashes and answers are on the CPU.
    """

    def __init__(self, lanes: int, steps: int, *, device: torch.device) -> None:
        self.lanes, self.device = lanes, device
        self.hashes = torch.zeros(lanes, steps + 2, dtype=torch.int64)
        self.known = torch.zeros(lanes, steps + 2, dtype=torch.bool)
        self.period = torch.zeros(lanes, dtype=torch.int64)
        self.due = torch.full((lanes,), -1, dtype=torch.int64)
        self.kept: Tensor | None = None
        self.weights: Tensor | None = None

    def forget(self, lanes: Tensor) -> None:
        """Start afresh in these lanes: they hold other images now."""
        self.known[lanes] = False
        self.period[lanes] = 0
        self.due[lanes] = -1

    def observe(self, points: Tensor, step: Tensor) -> Tensor:
        """Look at the point numbered `step` of each lane; return the confirmed period of each lane, 0 where there is none, (L,) int64.

        points: (L, ...) float32; step: (L,) int64, growing by one from call to call in a lane (or by whole periods).
        """
        bits = points.reshape(self.lanes, -1).contiguous().view(torch.int32)
        if self.weights is None or self.kept is None:
            generator = torch.Generator().manual_seed(0x5A7)
            odd = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
            self.weights = odd.to(self.device)
            self.kept = torch.zeros_like(bits)
        digest, step = _digest(bits, self.weights).cpu(), step.cpu()
        answer = torch.zeros_like(self.period)
        due = torch.nonzero(self.due == step).flatten()
        if len(due):
            rows = due.to(self.device)
            confirmed = due[(bits[rows] == self.kept[rows]).all(dim=1).cpu()]
            answer[confirmed] = self.period[confirmed]
        self._propose(bits, digest, step)
        return answer

    def _propose(self, bits: Tensor, digest: Tensor, step: Tensor) -> None:
        assert self.kept is not None
        column = step.clamp_max(self.hashes.shape[1] - 1)
        match = self.known & (self.hashes == digest[:, None])
        # the latest earlier occurrence gives the shortest period
        index = torch.arange(match.shape[1])
        earlier = torch.where(match, index, torch.full_like(index, -1)).amax(dim=1)
        new = torch.nonzero((earlier >= 0) & (self.due < step)).flatten()
        self.period[new] = (step - earlier)[new]
        self.due[new] = (step + self.period)[new]
        rows = new.to(self.device)
        self.kept[rows] = bits[rows]
        lane = torch.arange(self.lanes)
        self.hashes[lane, column] = digest
        self.known[lane, column] = True


@fusable
def _digest(bits: Tensor, weights: Tensor) -> Tensor:
    """Hash rows (L, D) int32; whole numbers, so in any order of the sum."""
    return (bits * weights).sum(dim=1)
