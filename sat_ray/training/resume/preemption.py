"""When to ask whether a machine of this training is about to be taken away, so that a checkpoint is out before it is.

Whoever asks waits for all processes, so all must ask after the same steps, and seldom: these are agreed on from the pace of training.
"""

from collections.abc import Callable
from time import perf_counter

import torch

from sat_ray.training.parallel.process_group import World

LOOK_SECONDS = 5.0  # between two questions; a spot node is announced at least 30 s before it goes


class PreemptionWatcher:
    """Asks `leaving` about every LOOK_SECONDS of training; None is never asked.

    leaving: whether a node of this training is about to go. Where the world has several processes it has to give all the same answer.
    """

    def __init__(self, leaving: Callable[[], bool] | None, world: World) -> None:
        self.leaving, self.world = leaving, world
        self.steps, self.wait, self.asked = 0, 1, perf_counter()

    def sees_notice(self, *, now: bool) -> bool:
        """Say whether to write a checkpoint: call it once after every step, in every process. now: ask in any case."""
        if self.leaving is None:
            return False
        self.steps += 1
        if not now and self.steps < self.wait:
            return False
        self.wait = self._steps_until_the_next()
        self.steps, self.asked = 0, perf_counter()
        return self.leaving()

    def _steps_until_the_next(self) -> int:
        """Return how many steps take LOOK_SECONDS at the mean pace of the processes since the last question."""
        seconds = (
            self.world.sum(torch.tensor([perf_counter() - self.asked], dtype=torch.float32)).item()
            / self.world.size
        )
        return max(1, int(LOOK_SECONDS * self.steps / max(seconds, 1e-6)))
