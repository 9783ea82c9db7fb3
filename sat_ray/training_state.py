"""What a training is at one moment, and what it reports after each epoch."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from sat_ray.sentinel import Memory


@dataclass
class TrainingState:
    """Everything needed to go on as if nothing had happened; tensors on the CPU, keyed by parameter or buffer name.

    epoch: epochs done; step: steps done of the epoch under way, whose losses, right answers and images add up to `sums` over all
    processes, in `epoch_seconds`; average: moving average of the weights, empty where none is kept; best: weights with the highest
    (robust, clean) validation accuracy so far, at best_epoch; sentinel, good: what the sentinel remembers, and the state it goes back to,
    keyed `weights/name`, `momentum/name`, `average/name`; events: what it did; seconds: spent so far.
    """

    epoch: int = 0
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    good: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_score: tuple[float, float] = (-1.0, -1.0)
    sentinel: Memory = field(default_factory=Memory)
    events: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    epoch_seconds: float = 0.0
    seconds: float = 0.0

    def snapshot(self) -> "TrainingState":
        """Return what this is now, whatever training does next: it puts new tensors in place of these, and adds to these lists."""
        return replace(self, events=[*self.events], history=[*self.history])


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    metrics: names as in MLflow, accuracies over all processes; state: to be saved or thrown away; events: what the sentinel did.
    """

    epoch: int
    metrics: dict[str, float]
    state: TrainingState
    events: tuple[dict[str, float], ...] = ()


def joined(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of several dicts as one, keyed `part/name`."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return one of the dicts that `joined` took."""
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
