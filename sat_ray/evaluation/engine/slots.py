"""The runs that are open: each has a seat from start to end, where what the attack remembers of it is kept while it is in no slot."""

import torch
from torch import Tensor

from sat_ray.attacks import State


class Seats:
    """Hold S open runs.

    number: (S,) int64, which run a seat belongs to, -1 for none; visited: (S,) int64, how many points that run has visited; in_slot:
    (S,) bool, whether it is in a slot now, so that the state kept here is an old one. All on the CPU, the states on the attack's device.
    """

    def __init__(self, count: int) -> None:
        self.number = torch.full((count,), -1)
        self.visited = torch.zeros(count, dtype=torch.int64)
        self.in_slot = torch.zeros(count, dtype=torch.bool)
        self._states: State | None = None

    @property
    def taken(self) -> Tensor:
        """Return the seats that belong to a run, (M,) int64."""
        return torch.nonzero(self.number >= 0).flatten()

    @property
    def parked(self) -> Tensor:
        """Return the seats whose runs are in no slot, (M,) int64."""
        return torch.nonzero((self.number >= 0) & ~self.in_slot).flatten()

    @property
    def empty(self) -> Tensor:
        """Return the seats that belong to no run, (M,) int64."""
        return torch.nonzero(self.number < 0).flatten()

    def open(self, numbers: Tensor, started: State) -> Tensor:
        """Give each run an empty seat, and return the seats. started: the states of the runs, the first rows."""
        seats = self.empty[: len(numbers)]
        self.number[seats], self.visited[seats] = numbers, 0
        if self._states is None:  # room for all, filled with anything
            self._states = _taken(started, torch.arange(len(self.number)) % len(started.y))
        self._states = _put(self._states, seats, started, torch.arange(len(numbers)))
        return seats

    def close(self, seats: Tensor) -> None:
        """Empty the seats of runs that are over."""
        self.number[seats], self.in_slot[seats] = -1, False

    def park(self, seats: Tensor, state: State, slots: Tensor) -> None:
        """Take runs out of slots: keep what stands there."""
        assert self._states is not None
        self.in_slot[seats] = False
        self._states = _put(self._states, seats, state, slots)

    def board(self, seats: Tensor, state: State | None, slots: Tensor, *, rows: int) -> State:
        """Put parked runs into slots of a state, which has so many rows and is returned; None where nothing has flown yet."""
        assert self._states is not None
        self.in_slot[seats] = True
        if state is None:
            return _taken(self._states, seats[:1].expand(rows).index_copy(0, slots, seats))
        return _put(state, slots, self._states, seats)


def _taken(state: State, rows: Tensor) -> State:
    return state.take(rows.to(state.y.device))


def _put(state: State, slots: Tensor, other: State, rows: Tensor) -> State:
    return state.put(slots.to(state.y.device), other, rows.to(state.y.device))
