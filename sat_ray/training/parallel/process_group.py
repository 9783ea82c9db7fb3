"""The group of processes that train one model together; one process alone is a world of size 1."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """rank in [0, size); with size > 1 torch.distributed is initialised; device: where its backend wants tensors (nccl: this GPU)."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor over all processes, in place; every process gets the total."""
        if self.size > 1:
            moved = values.to(self.device)
            dist.all_reduce(moved)
            values.copy_(moved)
        return values

    def barrier(self) -> None:
        """Wait for everybody."""
        if self.size > 1:
            self.sum(torch.zeros(1, dtype=torch.float32))
