"""The processes that train one model together; one process alone is a group of size 1."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class ProcessGroup:
    """The data-parallel ranks, seen from one of them.

    rank: in [0, size); size: above 1 only where torch.distributed is initialised; device: where
    its backend needs tensors (nccl: this process's GPU).
    """

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
        """Wait for all processes."""
        if self.size > 1:
            self.sum(torch.zeros(1, dtype=torch.float32))
