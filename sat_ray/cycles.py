"""Exact cycle detection for deterministic iterations: once a point repeats bit for bit, nothing new can be visited.

A 64-bit hash of every point is kept. A hash seen before proposes a period p; the point is then stored, and the cycle is confirmed only
when the point p steps later equals it in every bit. A false proposal costs nothing but the wait, so the result is exact.
"""

import torch
from torch import Tensor


class CycleDetector:
    """Watch L lanes for exact repetition.

    lanes, steps: sizes of the watch. Lanes are watched on `device`; answers come back on the CPU.
    """

    def __init__(self, lanes: int, steps: int, *, device: torch.device) -> None:
        self.lanes, self.device = lanes, device
        self.hashes = torch.zeros(lanes, steps + 2, dtype=torch.int64, device=device)
        self.known = torch.zeros(lanes, steps + 2, dtype=torch.bool, device=device)
        self.period = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.due = torch.full((lanes,), -1, dtype=torch.int64, device=device)
        self.kept: Tensor | None = None
        self.weights: Tensor | None = None

    def forget(self, lanes: Tensor) -> None:
        """Start afresh in these lanes: they hold other images now."""
        lanes = lanes.to(self.device)
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
        digest = (bits * self.weights).sum(dim=1)
        confirmed = (self.due == step) & (bits == self.kept).all(dim=1)
        answer = torch.where(confirmed, self.period, torch.zeros_like(self.period))
        self._propose(bits, digest, step)
        return answer.cpu()

    def _propose(self, bits: Tensor, digest: Tensor, step: Tensor) -> None:
        assert self.kept is not None
        column = step.clamp_max(self.hashes.shape[1] - 1)
        match = self.known & (self.hashes == digest[:, None])
        # the latest earlier occurrence gives the shortest period
        index = torch.arange(match.shape[1], device=self.device)
        earlier = torch.where(match, index, torch.full_like(index, -1)).amax(dim=1)
        new = (earlier >= 0) & (self.due < step)
        self.period = torch.where(new, step - earlier, self.period)
        self.due = torch.where(new, step + self.period, self.due)
        self.kept = torch.where(new[:, None], bits, self.kept)
        lane = torch.arange(self.lanes, device=self.device)
        self.hashes[lane, column] = digest
        self.known[lane, column] = True
