"""The open runs: each has an entry from start to end.

While a run is in no slot (swapped out), its entry keeps the state of the attack.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sat_ray.attacks import State


class OpenRuns:
    """Hold the entries of M open runs.

    number: (M,) int64, the run of an entry, -1 for none; visited: (M,) int64, how many points that
    run has visited; in_slot: (M,) bool, whether it is in a slot now, so that the state kept here is
    out of date. All on the CPU; the states are on the attack's device.
    """

    def __init__(self, count: int) -> None:
        self.number = torch.full((count,), -1)
        self.visited = torch.zeros(count, dtype=torch.int64)
        self.in_slot = torch.zeros(count, dtype=torch.bool)
        self._states: State | None = None

    @property
    def open(self) -> Tensor:
        """Return the entries that hold a run, int64."""
        return torch.nonzero(self.number >= 0).flatten()

    @property
    def swapped_out(self) -> Tensor:
        """Return the entries whose runs are in no slot, int64."""
        return torch.nonzero((self.number >= 0) & ~self.in_slot).flatten()

    @property
    def empty(self) -> Tensor:
        """Return the entries that hold no run, int64."""
        return torch.nonzero(self.number < 0).flatten()

    def add(self, numbers: Tensor, started: "State") -> Tensor:
        """Give each run an empty entry and return the entries.

        started: the states of the runs, in its first rows.
        """
        entries = self.empty[: len(numbers)]
        self.number[entries] = numbers
        self.visited[entries] = 0
        if self._states is None:  # allocate all rows; their content does not matter
            self._states = _taken(started, torch.arange(len(self.number)) % len(started.y))
        self._states = _put(self._states, entries, started, torch.arange(len(numbers)))
        return entries

    def close(self, entries: Tensor) -> None:
        """Empty the entries of runs that have ended."""
        self.number[entries] = -1
        self.in_slot[entries] = False

    def swap_out(self, entries: Tensor, state: "State", slots: Tensor) -> None:
        """Take runs out of slots and keep their states."""
        assert self._states is not None
        self.in_slot[entries] = False
        self._states = _put(self._states, entries, state, slots)

    def swap_in(
        self, entries: Tensor, state: "State | None", slots: Tensor, *, rows: int
    ) -> "State":
        """Put runs into slots of a state of `rows` rows and return it; None: make a new one."""
        assert self._states is not None
        self.in_slot[entries] = True
        if state is None:
            chosen = entries[:1].expand(rows).index_copy(0, slots, entries)
            return _taken(self._states, chosen)
        return _put(state, slots, self._states, entries)


def _taken(state: "State", rows: Tensor) -> "State":
    return state.take(rows.to(state.y.device))


def _put(state: "State", slots: Tensor, other: "State", rows: Tensor) -> "State":
    return state.put(slots.to(state.y.device), other, rows.to(state.y.device))
