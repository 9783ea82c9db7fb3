"""BatchNorm running statistics as the mean over all groups of a global batch.

The mean does not depend on which process computes which group.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sat_ray.training.parallel.process_group import ProcessGroup


class RunningStatistics:
    """Start every group from the same statistics, then average what the groups made of them.

    groups: of one update, in all processes together; each process has at least one.
    """

    def __init__(self, model: nn.Module, *, groups: int, process_group: ProcessGroup) -> None:
        self.process_group = process_group
        self.groups = groups
        self.alone = groups == 1
        modules = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.buffers: list[Tensor] = [
            buffer
            for module in modules
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        self.counters: list[Tensor] = [
            m.num_batches_tracked for m in modules if m.num_batches_tracked is not None
        ]
        self.updates: list[Tensor] = []
        self.before: list[Tensor] = []
        self.total: list[Tensor] = []

    @contextmanager
    def group(self, index: int) -> Iterator[None]:
        """Run one group's forward pass in train mode."""
        if self.alone:
            yield
            return
        if index == 0:
            self.before = [b.clone() for b in self.buffers]
            self.updates = [counter + 1 for counter in self.counters]
        else:
            self._restore(self.before)
        yield
        if index == 0:
            self.total = [b.clone() for b in self.buffers]
        else:
            self.total = [t + b for t, b in zip(self.total, self.buffers, strict=True)]

    def average(self) -> None:
        """Write the mean over all groups of all processes into the model."""
        if self.alone or not self.buffers:
            return
        flat = self.process_group.sum(torch.cat([t.flatten() for t in self.total])) / self.groups
        parts = torch.split(flat, [b.numel() for b in self.buffers])
        self._restore([part.view_as(b) for part, b in zip(parts, self.buffers, strict=True)])

        for counter, updates in zip(self.counters, self.updates, strict=True):
            counter.copy_(updates)  # one update, however many groups it had

    def _restore(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)
