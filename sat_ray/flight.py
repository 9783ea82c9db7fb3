"""Which image is in which lane: a reserve of started images, and the L lanes that take from it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.cycles import CycleDetector
from sat_ray.data.pixels import to_pixels
from sat_ray.randomness import Randomness


def pad(values: Tensor, lanes: int) -> Tensor:
    """Repeat the first row until there are exactly `lanes` rows."""
    missing = lanes - len(values)
    return values if missing == 0 else torch.cat([values, values[:1].expand(missing, *values.shape[1:])])


class _Reserve:
    """Hand out started images one by one; each block of L is started by calls of exactly L rows."""

    def __init__(
        self, attack: Attack, images: Tensor, y: Tensor, rng: Randomness, target: Tensor | None, *, lanes: int, device: torch.device
    ) -> None:
        self.attack, self.images, self.y, self.rng, self.target = attack, images, y, rng, target
        self.lanes, self.device = lanes, device
        self.next = 0
        self.block: State | None = None

    def take(self, wanted: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield (block, rows of the block, positions of the images) until `wanted` images were given or none is left."""
        while wanted > 0 and self.next < len(self.images):
            first = self.next - self.next % self.lanes
            if self.next == first or self.block is None:
                self.block = self._start(first)
            last = min(first + self.lanes, len(self.images), self.next + wanted)
            positions = torch.arange(self.next, last)
            wanted -= last - self.next
            self.next = last
            yield self.block, positions - first, positions

    def _start(self, first: int) -> State:
        span = slice(first, first + self.lanes)
        images, y = (pad(values[span], self.lanes).to(self.device) for values in (self.images, self.y))
        ids = pad(self.rng.image_ids[span], self.lanes).to(self.device)
        target = None if self.target is None else pad(self.target[span], self.lanes).to(self.device)
        return self.attack.start(to_pixels(images), y, Randomness(self.rng.seed, ids, self.rng.restart), target=target)


class Flight:
    """The L lanes in flight.

    position: (L,) int64 on the CPU, which of the given images a lane holds, -1 for none; state: where the attack stands in every lane;
    cycles: None where exact cycles are not looked for, or where the attack remembers more than its point.
    """

    def __init__(
        self,
        attack: Attack,
        images: Tensor,
        y: Tensor,
        rng: Randomness,
        target: Tensor | None,
        *,
        lanes: int,
        device: torch.device,
        detect_cycles: bool = True,
    ) -> None:
        self.reserve = _Reserve(attack, images, y, rng, target, lanes=lanes, device=device)
        self.position = torch.full((lanes,), -1)
        self.cycles = CycleDetector(lanes, attack.steps, device=device) if detect_cycles and attack.memoryless else None
        self._state: State | None = None

    @property
    def state(self) -> State:
        """Return where the attack stands, row i in lane i."""
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    @property
    def busy(self) -> bool:
        """Tell whether any lane holds an image."""
        return bool((self.position >= 0).any())

    def fill(self) -> Tensor:
        """Put waiting images into free lanes and return the lanes that hold a new one."""
        free = torch.nonzero(self.position < 0).flatten()
        used = 0
        for block, rows, positions in self.reserve.take(len(free)):
            taken = free[used : used + len(rows)]
            used += len(rows)
            device = block.x.device
            self._state = block if self._state is None else self._state.put(taken.to(device), block, rows.to(device))
            self.position[taken] = positions
        filled = free[:used]
        if self.cycles is not None:
            self.cycles.forget(filled)
        return filled

    def free(self, lanes: Tensor) -> None:
        """Let the images of these lanes go."""
        self.position[lanes] = -1
