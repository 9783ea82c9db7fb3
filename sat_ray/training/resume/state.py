"""What a training is at one moment, and what it reports after each epoch."""

from dataclasses import dataclass, field, replace
from time import time

from torch import Tensor

from sat_ray.training.catastrophic_overfitting import Memory


@dataclass
class TrainingState:
    """Everything needed to go on as if nothing had happened; tensors on the CPU, keyed by parameter
    or buffer name."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch under way; 0 between epochs."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of the last update, with the buffers: what `load_state_dict` takes."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """State of the optimizer, keyed `kind/name`, kind being torch's name: momentum_buffer of SGD;
    exp_avg, exp_avg_sq and step of AdamW."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """Moving average of the weights; empty where none is kept."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights (or average) of the highest (robust, clean) validation accuracy so far; empty before
    the first validation."""
    good: dict[str, Tensor] = field(default_factory=dict)
    """What the guard goes back to, keyed `weights/name`, `optimizer/kind/name`, `average/name`."""
    best_epoch: int = -1
    """Epoch of `best`, counted from 0; -1 before the first validation."""
    best_score: tuple[float, float] = (-1.0, -1.0)
    """(robust, clean) validation accuracy of `best`."""
    guard: Memory = field(default_factory=Memory)
    """What the guard has seen."""
    events: list[dict[str, float]] = field(default_factory=list)
    """Roll-backs by the guard."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every epoch done, with its number as `epoch`."""
    epoch_ends: list[float] = field(default_factory=list)
    """Unix time at the end of every epoch done."""
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Losses, right answers and images of the epoch under way, over all processes."""
    epoch_seconds: float = 0.0
    """Spent on the epoch under way."""
    seconds: float = 0.0
    """Spent so far, in one process."""

    def take(self, snapshot: dict[str, Tensor]) -> None:
        """Put a snapshot of the model in place of the last one; see `TrainStep.snapshot`."""
        self.weights = part_of(snapshot, "weights")
        self.optimizer = part_of(snapshot, "optimizer")
        self.average = part_of(snapshot, "average")

    def note(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add a row to the history, and the time; epoch -1 is before the first step."""
        self.history.append({"epoch": float(epoch), **metrics})
        self.epoch_ends.append(time())

    def end_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add the metrics of an epoch, and keep its weights where they are the best so far."""
        self.note(epoch, metrics)
        if "val/robust_accuracy" in metrics:
            score = (metrics["val/robust_accuracy"], metrics["val/clean_accuracy"])
            if score >= self.best_score:
                self.best = self.average or self.weights
                self.best_epoch = epoch
                self.best_score = score
        self.epoch = epoch + 1
        self.step = 0
        self.sums = (0.0, 0.0, 0.0)
        self.epoch_seconds = 0.0

    def snapshot(self) -> "TrainingState":
        """Return a copy that later training does not change.

        Training replaces the tensors and appends to the lists, so only the lists are copied.
        """
        return replace(
            self,
            events=[*self.events],
            history=[*self.history],
            epoch_ends=[*self.epoch_ends],
        )


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did."""

    epoch: int
    """Counted from 0."""
    metrics: dict[str, float]
    """Named as in MLflow, over all processes: `train/loss`, `train/adversarial_accuracy` (fraction,
    under the training attack),
    `train/learning_rate`, `throughput/images_per_second`; after a validation `val/clean_accuracy`
    and `val/robust_accuracy`
    (fractions of all validation images); with a guard `guard/robust_accuracy` and
    `guard/collapses`; `system/worker_…`, what the processes used (see `WorkerLoad`)."""
    state: TrainingState
    """Where training stands, to be saved or thrown away; training goes on in the same object, so
    copy it (`snapshot`) to keep it."""
    events: tuple[dict[str, float], ...] = ()
    """Roll-backs by the guard in this epoch."""


def joined(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of several dicts as one, keyed `part/name`."""
    return {
        f"{part}/{name}": tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return one of the dicts that `joined` took."""
    return {
        name.removeprefix(f"{part}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{part}/")
    }
