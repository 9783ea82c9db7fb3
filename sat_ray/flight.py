"""Which run is in which lane: a reserve of started runs, and the L lanes that take from it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.cycles import CycleDetector
from sat_ray.data.pixels import to_pixels
from sat_ray.narrowing import pad
from sat_ray.randomness import Randomness
from sat_ray.run_queue import RunQueue


class _Reserve:
    """Hand out started runs; each block of at most L of them is started in L rows."""

    def __init__(
        self,
        queue: RunQueue,
        attack: Attack,
        images: Tensor,
        y: Tensor,
        rng: Randomness,
        target: Tensor | None,
        *,
        lanes: int,
        device: torch.device,
    ) -> None:
        self.queue, self.attack = queue, attack
        self.images, self.y, self.rng, self.target = images, y, rng, target
        self.lanes, self.device = lanes, device
        self.block: State | None = None
        self.numbers = torch.zeros(0, dtype=torch.int64)
        self.next = 0

    def take(self, wanted: int) -> Iterator[tuple[State, Tensor, Tensor]]:
        """Yield (block, rows of the block, numbers of the runs) until `wanted` runs were given or none is left."""
        while wanted > 0:
            if self.next == len(self.numbers) and not self._start_more():
                return
            rows = torch.arange(self.next, min(self.next + wanted, len(self.numbers)))
            self.next += len(rows)
            rows = rows[~self.queue.in_vain(self.numbers[rows])]
            wanted -= len(rows)
            assert self.block is not None
            yield self.block, rows, self.numbers[rows]

    def _start_more(self) -> bool:
        """Start a block of runs, those that are needed before those ahead of need; False where none is left."""
        numbers = self.queue.take(self.lanes)
        numbers = torch.cat([numbers, self.queue.take(self.lanes - len(numbers), ahead=True)])
        if len(numbers):
            self.block, self.numbers, self.next = self._start(numbers), numbers, 0
        return len(numbers) > 0

    def _start(self, numbers: Tensor) -> State:
        image, run = numbers % self.queue.images, numbers // self.queue.images
        rng = self.rng.take(image).further(run)
        assert isinstance(rng.restart, Tensor)
        given = (self.images[image], self.y[image], rng.image_ids, rng.restart)
        images, y, ids, restart = (pad(values.to(self.device), self.lanes) for values in given)
        target = None if self.target is None else pad(self.target[image, run].to(self.device), self.lanes)
        return self.attack.start(to_pixels(images), y, Randomness(rng.seed, ids, restart), target=target)


class Flight:
    """The L lanes in flight.

    number: (L,) int64 on the CPU, which run a lane flies (run r of N images' i-th is r * N + i), -1 for none; state: where the attack
    stands in every lane; cycles: None where exact cycles are not looked for, or where the attack remembers more than its point.
    """

    def __init__(
        self,
        attack: Attack,
        images: Tensor,
        y: Tensor,
        rng: Randomness,
        target: Tensor | None,
        *,
        runs: int,
        lanes: int,
        device: torch.device,
        detect_cycles: bool = True,
    ) -> None:
        self.attack, self.queue = attack, RunQueue(len(images), runs=runs)
        self.reserve = _Reserve(self.queue, attack, images, y, rng, target, lanes=lanes, device=device)
        self.number = torch.full((lanes,), -1)
        self.unsound = torch.zeros(0, dtype=torch.int64)
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
        """Tell whether any lane flies a run."""
        return bool((self.number >= 0).any())

    def fill(self) -> Tensor:
        """Put waiting runs into free lanes and return the lanes that hold a new one."""
        free = torch.nonzero(self.number < 0).flatten()
        used = 0
        for block, rows, numbers in self.reserve.take(len(free)):
            taken = free[used : used + len(rows)]
            used += len(rows)
            device = block.x.device
            self._state = block if self._state is None else self._state.put(taken.to(device), block, rows.to(device))
            self.number[taken] = numbers
        filled = free[:used]
        if self.cycles is not None:
            self.cycles.forget(filled)
        return filled

    def free(self, lanes: Tensor) -> None:
        """End the runs of these lanes, where they hold any."""
        lanes = lanes[self.number[lanes] >= 0]
        self.queue.end(self.number[lanes])
        self.number[lanes] = -1

    def set_aside(self, lanes: Tensor) -> None:
        """End runs that went wrong; `unsound_numbers` tells which of them count."""
        self.unsound = torch.cat([self.unsound, self.number[lanes]])
        self.free(lanes)

    def unsound_numbers(self) -> Tensor:
        """Return the runs set aside whose images no earlier run has broken, (M,) int64."""
        return self.unsound[~self.queue.in_vain(self.unsound)]

    def note_broken(self, numbers: Tensor) -> None:
        """Note that these runs broke their images, and end the later runs of the same images."""
        self.queue.note_broken(numbers)
        self.free(torch.nonzero(self.queue.in_vain(self.number)).flatten())
