"""Which run is in which slot, so that slots are full to the end.

Runs end at different times: some images are broken after three points, others never. If each run flew from start to end, the last ones
would fly on in slots that nothing is left to fill. So, once all runs that wait have a seat, whoever has visited the fewest points flies
first, others are parked, and all end at nearly the same time. What a run finds does not depend on when it flies.
"""

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.data.pixels import to_pixels
from sat_ray.evaluation.engine.batch_buckets import pad
from sat_ray.evaluation.engine.cycles import CycleDetector
from sat_ray.evaluation.engine.restarts import RunQueue
from sat_ray.evaluation.engine.slots import Seats
from sat_ray.utils.randomness import Randomness

SEATS_PER_SLOT = 4  # memory of so many points, against slots that run empty at the end
TURN = 4  # steps between two changes of who flies: each costs as much memory traffic as a step of the attack


class Flight:
    """The L slots in flight, and the runs that are parked.

    seat: (L,) int64 on the CPU, the seat whose run is in a slot, -1 for none; state: where the attack stands in every slot; cycles: None
    where exact cycles are not looked for, or where the attack remembers more than its point.
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
        slots: int,
        device: torch.device,
        detect_cycles: bool = True,
    ) -> None:
        self.attack, self.queue = attack, RunQueue(len(images), runs=runs)
        self.images, self.y, self.rng, self.target = images, y, rng, target
        self.slots, self.device = slots, device
        self.seats = Seats(min(SEATS_PER_SLOT * slots, max(slots, runs * len(images))))
        self.seat = torch.full((slots,), -1)
        self.unsound = torch.zeros(0, dtype=torch.int64)
        self.without_gradient = torch.zeros(0, dtype=torch.int64)
        wanted = detect_cycles and attack.memoryless
        self.cycles = (
            CycleDetector(len(self.seats.number), attack.steps, device=device) if wanted else None
        )
        self._state: State | None = None
        self._steps = 0

    @property
    def number(self) -> Tensor:
        """Return which run each slot flies, (L,) int64: run r of N images' i-th is r * N + i; -1 for none."""
        return torch.where(self.seat >= 0, self.seats.number[self.seat], -1)

    @property
    def visited(self) -> Tensor:
        """Return how many points each slot's run has visited, that of this step included, (L,) int64; means nothing where there is none."""
        return self.seats.visited[self.seat]

    @property
    def state(self) -> State:
        """Return where the attack stands, row i in slot i."""
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    def fill(self) -> bool:
        """Choose the runs of the next step; False when none is left."""
        turn = self._steps % TURN == 0
        self._steps += 1
        if self._lacks_runs() or (
            turn and len(self.seats.empty) >= min(self.slots, self.queue.waiting)
        ):
            self._open_more()
        if turn and not self.queue.waiting:
            self._give_way()
        self._board()
        flying = self.seat[self.seat >= 0]
        self.seats.visited[flying] += 1
        return len(flying) > 0

    def free(self, slots: Tensor) -> None:
        """End the runs of these slots, where they hold any."""
        seats = self.seat[slots]
        self._close(seats[seats >= 0])

    def set_aside(self, slots: Tensor, *, lost: Tensor) -> None:
        """End runs that went wrong; `unsound_numbers` returns those that count.

        lost: (L,) bool, the slots whose point is not finite because the gradient was not.
        """
        numbers = self.number[slots]
        self.unsound = torch.cat([self.unsound, numbers])
        self.without_gradient = torch.cat([self.without_gradient, numbers[lost[slots]]])
        self.free(slots)

    def unsound_numbers(self) -> Tensor:
        """Return the runs set aside whose images no earlier run has broken, (M,) int64."""
        return self.unsound[~self.queue.in_vain(self.unsound)]

    def note_broken(self, numbers: Tensor) -> None:
        """Note that these runs broke their images, and end the later runs of the same images."""
        self.queue.note_broken(numbers)
        self._close(torch.nonzero(self.queue.in_vain(self.seats.number)).flatten())

    def _close(self, seats: Tensor) -> None:
        self.queue.end(self.seats.number[seats])
        self.seats.close(seats)
        self.seat[torch.isin(self.seat, seats)] = -1

    def _lacks_runs(self) -> bool:
        return len(self.seats.taken) < self.slots

    def _open_more(self) -> None:
        """Seat the runs that wait; where these are fewer than the slots, some ahead of need."""
        while len(numbers := self.queue.take(min(self.slots, len(self.seats.empty)))):
            self._open(numbers)
        while self._lacks_runs() and len(
            numbers := self.queue.take(self.slots - len(self.seats.taken), ahead=True)
        ):
            self._open(numbers)

    def _open(self, numbers: Tensor) -> None:
        """Start at most L runs, in L rows."""
        image, run = numbers % self.queue.images, numbers // self.queue.images
        rng = self.rng.take(image).further(run)
        assert isinstance(rng.restart, Tensor)
        given = (self.images[image], self.y[image], rng.image_ids, rng.restart)
        images, y, ids, restart = (pad(values.to(self.device), self.slots) for values in given)
        target = (
            None
            if self.target is None
            else pad(self.target[image, run].to(self.device), self.slots)
        )
        started = self.attack.start(
            to_pixels(images), y, Randomness(rng.seed, ids, restart), target=target
        )
        seats = self.seats.open(numbers, started)
        if self.cycles is not None:
            self.cycles.forget(seats)

    def _give_way(self) -> None:
        """Park the runs that should not be in the slots now, where others should."""
        first = self._by_progress(self.seats.taken)[: self.slots]
        slots = torch.nonzero((self.seat >= 0) & ~torch.isin(self.seat, first)).flatten()
        if len(slots):
            self.seats.park(self.seat[slots], self.state, slots)
            self.seat[slots] = -1

    def _board(self) -> None:
        """Put parked runs into free slots."""
        free, parked = torch.nonzero(self.seat < 0).flatten(), self.seats.parked
        if len(free) and len(parked):
            seats = self._by_progress(parked)[: len(free)]
            slots = free[: len(seats)]
            self._state = self.seats.board(seats, self._state, slots, rows=self.slots)
            self.seat[slots] = seats

    def _by_progress(self, seats: Tensor) -> Tensor:
        """Order seats by how far their images are, in points visited; of equals those in a slot stay there, then in order of the images."""
        seats = seats[(self.seats.number[seats] % self.queue.images).argsort(stable=True)]
        visited = (
            self.seats.number[seats] // self.queue.images * (self.attack.steps + 1)
            + self.seats.visited[seats]
        )
        return seats[(2 * visited + ~self.seats.in_slot[seats]).argsort(stable=True)]
