"""Simulate a training, an evaluation and a sweep on many workers from the times of their parts.

    step      the slowest worker's compute, then what of the exchange no backward pass hides
    training  start-up, steps, checkpoints between them, validations, commit
    sweep     stages one after the other; the tasks of a stage share the workers

Nothing is measured here: `scaling_parts.py` measures parts on this machine,
`scaling_inputs.py` holds those of a GPU cluster. Times are in seconds, sizes in bytes.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from sat_ray.training.settings import share_of

DRAWN_STEPS = 64  # of each training; their mean stands for all of its steps
LAST_BUCKET = 25 * 2**20  # bytes of gradients that DDP sends at a time

Exchange = Callable[[float, int], float]  # bytes and workers -> seconds of an all-reduce
Task = tuple[int, float]  # workers that a task takes at once, and for how many seconds


@dataclass(frozen=True, kw_only=True)
class Network:
    """Nodes of `per_node` workers, and what joins them.

    inside, between: bytes per second that a worker sends in its node, and to another node;
    inside_latency, between_latency: seconds of one hop.
    """

    per_node: int
    inside: float
    between: float
    inside_latency: float
    between_latency: float

    def all_reduce(self, size: float, workers: int) -> float:
        """Return the seconds in which workers add up `size` bytes.

        Every node reduces and scatters its bytes, each of its workers adds its part up with its
        counterparts in the other nodes, and every node gathers the parts. Rings take 2 (n - 1)
        hops for n workers, trees 2 log2 n hops and twice the bytes for few workers; the
        faster of both counts.
        """
        near = min(workers, self.per_node)
        nodes = math.ceil(workers / self.per_node)
        part = size / near  # between nodes, of each worker
        ring = 2 * (near - 1) / near * size / self.inside + 2 * (near - 1) * self.inside_latency
        ring += 2 * (nodes - 1) / nodes * part / self.between
        ring += 2 * (nodes - 1) * self.between_latency
        tree = 2 * math.log2(near) * self.inside_latency
        tree += 2 * math.log2(nodes) * self.between_latency
        tree += 2 * size / self.inside * (near > 1) + 2 * part / self.between * (nodes > 1)
        return min(ring, tree)


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """What a training step is made of.

    group: seconds of one BatchNorm group (attack, forward, backward); fixed: seconds of a step
    whatever number of groups a worker has; spread: measured steps / their mean, from which every
    worker's step is drawn; unequal: standard deviation of the workers' lasting speeds around 1;
    gradients, buffers: bytes of gradients, and of the statistics that are averaged after them;
    hidden: seconds of the last group's backward pass, behind which gradients are sent; reading:
    seconds in which a worker gets the images of one group, beside its compute; cores: that all
    workers share, 0 where each has a device of its own.
    """

    group: float
    fixed: float = 0.0
    spread: Sequence[float] = (1.0,)
    unequal: float = 0.0
    gradients: float = 0.0
    buffers: float = 0.0
    hidden: float = 0.0
    reading: float = 0.0
    cores: int = 0

    def compute(self, groups: int) -> float:
        """Return the seconds of a mean step of one worker that has a core or device to itself."""
        return self.fixed + groups * self.group


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The seconds of a mean step, by what the slowest worker waits for."""

    compute: float
    stragglers: float
    reading: float
    exchange: float

    @property
    def total(self) -> float:
        """Return the seconds of a step."""
        return self.compute + self.stragglers + self.reading + self.exchange


def groups_of_workers(groups: int, workers: int) -> list[int]:
    """Return how many BatchNorm groups each worker trains."""
    assert workers <= groups, "a worker without a group cannot take part"
    shares = [share_of(groups, rank=rank, world_size=workers) for rank in range(workers)]
    return [share.stop - share.start for share in shares]


def step_time(
    parts: StepParts,
    *,
    groups: int,
    workers: int,
    all_reduce: Exchange,
    rng: random.Random,
) -> StepTime:
    """Draw steps and return their mean."""
    shares = groups_of_workers(groups, workers)
    speeds = [max(0.5, rng.gauss(1.0, parts.unequal)) for _ in shares]
    own = [speed * parts.compute(share) for speed, share in zip(speeds, shares, strict=True)]
    equal = _together([parts.compute(share) for share in shares], parts.cores)
    drawn = fmean(_drawn_step(own, parts, rng) for _ in range(DRAWN_STEPS))
    reading = max(0.0, max(shares) * parts.reading - drawn)
    return StepTime(
        compute=equal,
        stragglers=drawn - equal,
        reading=reading,
        exchange=exposed_exchange(parts, workers=workers, all_reduce=all_reduce),
    )


def _drawn_step(own: Sequence[float], parts: StepParts, rng: random.Random) -> float:
    factors = rng.choices(parts.spread, k=len(own))
    return _together([a * b for a, b in zip(own, factors, strict=True)], parts.cores)


def _together(seconds: Sequence[float], cores: int) -> float:
    """Return when all have ended: the slowest, or all of their work on the cores they share."""
    return max(max(seconds), sum(seconds) / cores) if cores else max(seconds)


def exposed_exchange(parts: StepParts, *, workers: int, all_reduce: Exchange) -> float:
    """Return the seconds of a step's exchanges that nothing hides.

    Gradients are sent in buckets while the last group's backward pass computes, but the last
    bucket is complete only when that has ended. Statistics are exchanged after it.
    """
    if workers == 1:
        return 0.0
    waited = all_reduce(parts.gradients, workers) - parts.hidden
    if parts.hidden:
        waited = max(waited, all_reduce(min(LAST_BUCKET, parts.gradients), workers))
    return max(0.0, waited) + (all_reduce(parts.buffers, workers) if parts.buffers else 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What a training is made of beside its steps.

    epochs, steps, groups: their number, of an epoch, of a step; start: seconds until the first step
    and after the last; validation: seconds of one validation on one worker, with `waves` full calls
    of slots; validate_every: epochs between two; epoch_end: seconds for which an epoch's end takes
    all workers; checkpoint_every: steps between two checkpoints, 0 for none within an epoch; copy:
    seconds for which a checkpoint stops the steps; write: seconds of its write, beside them.
    """

    step: StepParts
    epochs: int
    steps: int
    groups: int
    start: float = 0.0
    validation: float = 0.0
    waves: int = 1
    validate_every: int = 1
    epoch_end: float = 0.0
    checkpoint_every: int = 0
    copy: float = 0.0
    write: float = 0.0

    @property
    def validations(self) -> int:
        """Return how many there are; the last epoch always has one."""
        return math.ceil(self.epochs / self.validate_every)


def training_time(
    parts: TrainingParts, *, workers: int, all_reduce: Exchange, rng: random.Random
) -> dict[str, float]:
    """Return the seconds of a training by what they go to."""
    step = step_time(
        parts.step, groups=parts.groups, workers=workers, all_reduce=all_reduce, rng=rng
    )
    cores = parts.step.cores
    crowd = max(1.0, workers / cores) if cores else 1.0
    busy = cores > 0 and workers >= cores  # then no core is free for what runs beside the steps
    number = parts.epochs * parts.steps
    waves = math.ceil(parts.waves / workers) / parts.waves
    checkpoints = parts.validations - 1
    waited = parts.copy + (parts.write if busy else 0.0)
    within = 0.0
    if parts.checkpoint_every:
        between = parts.checkpoint_every * step.total + parts.copy
        within = parts.copy + max(0.0, parts.write - between)
    return {
        "start-up": parts.start,
        "compute": number * step.compute,
        "stragglers": number * step.stragglers,
        "reading": number * step.reading,
        "exchange": number * step.exchange,
        "validation": parts.validations * parts.validation * waves * crowd,
        "checkpoints": parts.epochs * parts.epoch_end * crowd
        + checkpoints * waited
        + (number // parts.checkpoint_every * within if parts.checkpoint_every else 0.0),
    }


def makespan(sweeps: Sequence[Sequence[Sequence[Task]]], workers: int) -> float:
    """Return the seconds in which sweeps end that share the workers.

    sweeps: of each its stages in order, of each stage its tasks. A stage starts when the one
    before it has ended. Whenever workers are free, the first ready task that fits starts.
    """
    waiting = [[list(stage) for stage in sweep if stage] for sweep in sweeps]
    running: list[tuple[float, int, int]] = []  # end, sweep, workers
    unfinished = [len(sweep[0]) if sweep else 0 for sweep in waiting]  # of the present stage
    now = 0.0
    free = workers
    while any(waiting) or running:
        for number, sweep in enumerate(waiting):
            for task in list(sweep[0]) if sweep else ():
                assert task[0] <= workers, "a task needs more workers than there are"
                if task[0] <= free:
                    sweep[0].remove(task)
                    free -= task[0]
                    heapq.heappush(running, (now + task[1], number, task[0]))
        now, number, size = heapq.heappop(running)
        free += size
        unfinished[number] -= 1
        if not unfinished[number]:
            waiting[number].pop(0)
            unfinished[number] = len(waiting[number][0]) if waiting[number] else 0
    return now
