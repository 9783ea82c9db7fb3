"""The scheduler decides which run is in which slot, so that slots are full to the end.

Runs end at different times: some images are broken after three points, others never. If each run
stayed in its slot from start to end, the last ones would go on while nothing is left for the other
slots. So once all waiting runs are open, the runs that have visited the fewest points come first
and others are swapped out. All then end at nearly the same time. The result of a run does not
depend on when it is in a slot.
"""

import torch
from torch import Tensor

from sat_ray.attacks import Attack, State
from sat_ray.evaluation.engine.attack_inputs import AttackInputs
from sat_ray.evaluation.engine.cycles import CycleDetector
from sat_ray.evaluation.engine.finite import is_finite, logits_error, not_finite
from sat_ray.evaluation.engine.restarts import RestartQueue
from sat_ray.evaluation.engine.slots import OpenRuns

OPEN_RUNS_PER_SLOT = 4  # memory for so many states, against empty slots at the end
SWAP_EVERY = 4  # steps: a swap costs as much memory traffic as a step of the attack


class FailedRuns:
    """Collect the numbers of runs whose logits or points were not finite."""

    def __init__(self) -> None:
        self.numbers = torch.zeros(0, dtype=torch.int64)
        self.without_gradient = torch.zeros(0, dtype=torch.int64)

    def add(self, numbers: Tensor, *, lost: Tensor) -> None:
        """Add runs. lost: bool for each, whether its point is not finite: its gradient was not."""
        self.numbers = torch.cat([self.numbers, numbers])
        self.without_gradient = torch.cat([self.without_gradient, numbers[lost]])


class Scheduler:
    """Fill L slots with runs, and swap runs out and in.

    inputs: what is attacked; entry: (L,) int64 on the CPU, the entry in `open_runs` of the run in a
    slot, -1 for none; state: the state of the attack in every slot; cycles: None where exact cycles
    are not looked for, or where the attack remembers more than its point.
    """

    def __init__(
        self,
        attack: Attack,
        inputs: AttackInputs,
        *,
        slots: int,
        device: torch.device,
        detect_cycles: bool = True,
    ) -> None:
        self.attack = attack
        self.inputs = inputs
        self.device = device
        self.queue = RestartQueue(len(inputs), runs=inputs.runs)
        needed = max(slots, inputs.runs * len(inputs))
        self.open_runs = OpenRuns(min(OPEN_RUNS_PER_SLOT * slots, needed))
        self.entry = torch.full((slots,), -1)
        self.failed = FailedRuns()
        self.cycles: CycleDetector | None = None
        if detect_cycles and attack.memoryless:
            rows = len(self.open_runs.number)
            self.cycles = CycleDetector(rows, attack.steps, device=device)
        self._state: State | None = None
        self._steps = 0

    @property
    def slots(self) -> int:
        """Return the number of slots."""
        return len(self.entry)

    @property
    def number(self) -> Tensor:
        """Return the run in each slot, (L,) int64: run r of image i of N is r * N + i; -1: none."""
        return torch.where(self.entry >= 0, self.open_runs.number[self.entry], -1)

    @property
    def occupied(self) -> Tensor:
        """Return which slots hold a run, (L,) bool on the CPU."""
        return self.number >= 0

    @property
    def visited(self) -> Tensor:
        """Return how many points the run of each slot has visited, this step's included, (L,).

        The value of an empty slot has no meaning.
        """
        return self.open_runs.visited[self.entry]

    @property
    def state(self) -> State:
        """Return the state of the attack, row i in slot i."""
        assert self._state is not None
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    def fill(self) -> bool:
        """Choose the runs of the next step; return False when none is left."""
        swaps = self._steps % SWAP_EVERY == 0
        self._steps += 1
        room = len(self.open_runs.empty) >= min(self.slots, self.queue.waiting)
        if self._lacks_runs() or (swaps and room):
            self._open_more()
        if swaps and not self.queue.waiting:
            self._swap_out()
        self._swap_in()
        running = self.entry[self.entry >= 0]
        self.open_runs.visited[running] += 1
        return len(running) > 0

    def end(self, slots: Tensor) -> None:
        """End the runs of these slots, where they hold any."""
        entries = self.entry[slots]
        self._close(entries[entries >= 0])

    def require_finite(self, x_adv: Tensor, logits: Tensor, *, of: str = "model") -> None:
        """Raise ValueError where the logits of an image's first run are not finite.

        Later runs whose logits are not finite are ended as failed: `require_sound` raises for one
        of them if no earlier run breaks its image. x_adv: the points of the logits, (L, C, H, W); a
        point that is not finite comes from a gradient that was not, and the message says so.
        """
        lost = ~is_finite(x_adv)
        bad = (not_finite(logits) | lost) & self.occupied
        if not bool(bad.any()):
            return
        first = bad & (self.number < self.queue.images)
        if bool(first.any()):
            ids = self.state.rng.image_ids.cpu()[first]
            raise logits_error(ids, of=of, lost=bool((first & lost).any()))
        slots = torch.nonzero(bad).flatten()
        self.failed.add(self.number[slots], lost=lost[slots])
        self.end(slots)

    def require_sound(self) -> None:
        """Raise ValueError where a run has failed whose image no earlier run has broken."""
        numbers = self.failed.numbers[~self.queue.redundant(self.failed.numbers)]
        if len(numbers):
            lost = bool(torch.isin(numbers, self.failed.without_gradient).any())
            raise logits_error(self.inputs.rng.image_ids[numbers % self.queue.images], lost=lost)

    def mark_broken(self, numbers: Tensor) -> None:
        """Record that these runs broke their images, and end the later runs of these images."""
        self.queue.mark_broken(numbers)
        self._close(torch.nonzero(self.queue.redundant(self.open_runs.number)).flatten())

    def _close(self, entries: Tensor) -> None:
        self.queue.end(self.open_runs.number[entries])
        self.open_runs.close(entries)
        self.entry[torch.isin(self.entry, entries)] = -1

    def _lacks_runs(self) -> bool:
        return len(self.open_runs.open) < self.slots

    def _open_more(self) -> None:
        """Open the waiting runs; where these are fewer than the slots, some ahead of need."""
        while len(numbers := self.queue.take(min(self.slots, len(self.open_runs.empty)))):
            self._open(numbers)
        while self._lacks_runs():
            wanted = self.slots - len(self.open_runs.open)
            numbers = self.queue.take(wanted, ahead=True)
            if not len(numbers):
                return
            self._open(numbers)

    def _open(self, numbers: Tensor) -> None:
        """Start at most L runs, in L rows."""
        started = self.inputs.start(self.attack, numbers, rows=self.slots, device=self.device)
        entries = self.open_runs.add(numbers, started)
        if self.cycles is not None:
            self.cycles.forget(entries)

    def _swap_out(self) -> None:
        """Take runs out of slots where others should run now."""
        first = self._by_progress(self.open_runs.open)[: self.slots]
        slots = torch.nonzero((self.entry >= 0) & ~torch.isin(self.entry, first)).flatten()
        if len(slots):
            self.open_runs.swap_out(self.entry[slots], self.state, slots)
            self.entry[slots] = -1

    def _swap_in(self) -> None:
        """Put runs that are swapped out into free slots."""
        free = torch.nonzero(self.entry < 0).flatten()
        waiting = self.open_runs.swapped_out
        if len(free) and len(waiting):
            entries = self._by_progress(waiting)[: len(free)]
            slots = free[: len(entries)]
            self._state = self.open_runs.swap_in(entries, self._state, slots, rows=self.slots)
            self.entry[slots] = entries

    def _by_progress(self, entries: Tensor) -> Tensor:
        """Sort entries by how many points their images have visited, the fewest first.

        Of equals, those in a slot come first; then the order is that of the images.
        """
        number = self.open_runs.number
        entries = entries[(number[entries] % self.queue.images).argsort(stable=True)]
        earlier_runs = number[entries] // self.queue.images * (self.attack.steps + 1)
        visited = earlier_runs + self.open_runs.visited[entries]
        return entries[(2 * visited + ~self.open_runs.in_slot[entries]).argsort(stable=True)]
