"""Notice of preemption: whether a machine of a training is about to be taken away.

A checkpoint must be written before the machine goes. All processes have to look for a notice after
the same steps, because looking makes them wait for each other. So they look seldom, and they agree
on the steps from the mean pace of training.
"""

from collections.abc import Callable
from time import perf_counter

import torch

from sat_ray.training.parallel.process_group import ProcessGroup

# The time between two looks. A spot node is announced at least 30 s before it is taken away.
LOOK_SECONDS = 5.0


class PreemptionWatcher:
    """Call `announced` about every LOOK_SECONDS of training.

    announced: whether a machine of this training is about to be taken away, the same answer on
    every process; None where nothing can tell.
    """

    def __init__(self, announced: Callable[[], bool] | None, process_group: ProcessGroup) -> None:
        self.announced = announced
        self.process_group = process_group
        self.steps = 0  # since the last look
        self.wait = 1  # steps from one look to the next
        self.looked = perf_counter()

    def sees_notice(self, *, now: bool) -> bool:
        """Return whether to write a checkpoint; call it after every step, in every process.

        now: look at once, whenever the last look was.
        """
        if self.announced is None:
            return False
        self.steps += 1
        if not now and self.steps < self.wait:
            return False
        self.wait = self._steps_until_the_next()
        self.steps = 0
        self.looked = perf_counter()
        return self.announced()

    def _steps_until_the_next(self) -> int:
        """Return how many steps take LOOK_SECONDS at the mean pace since the last look."""
        mine = torch.tensor([perf_counter() - self.looked], dtype=torch.float32)
        seconds = self.process_group.sum(mine).item() / self.process_group.size
        return max(1, int(LOOK_SECONDS * self.steps / max(seconds, 1e-6)))
