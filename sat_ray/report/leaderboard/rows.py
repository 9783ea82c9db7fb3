"""One evaluated model, and the display name of its configuration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sat_ray.evaluation.corruptions.summary import mean_accuracy
from sat_ray.evaluation.outcomes import OUTCOME_SCHEMA
from sat_ray.sweep.search.search_space import configuration_name


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedModel:
    """Hold one trained and evaluated model: configuration, seed, cost and outcomes.

    alpha, attacker_alpha: the activation's sharpness, None if there is none or it is learned.
    val_robust_accuracy: in [0, 1], on the validation split, the only split that chooses a model.
    accelerator_seconds: of training, seconds of one accelerator (or core) summed.
    history: one dict per epoch, keys `epoch`, `train/loss`, `val/robust_accuracy` and so on; epochs
    without validation have no val keys.
    table: outcomes on the test split, one row per (image_id, attack, restart).
    events: the guard's roll-backs, oldest first; sha256: of the checkpoint's weights.
    val_strong_robust_accuracy: in [0, 1], on the validation split under the strong attacks; it
    chooses the champion where it is known.
    strong_table: outcomes of the strong attacks on the same test images, with rows for the
    survivors of `table` only; strong_outcomes: where it is stored. None: no strong attack was run.
    corruptions: accuracy on the test images by kind of common corruption, one for each severity;
    None: not measured.
    Raises ValueError for a figure outside its range or a table without the outcome columns.
    """

    model: str
    activation: str
    alpha: float | None
    attacker_activation: str
    attacker_alpha: float | None
    seed: int
    val_robust_accuracy: float
    checkpoint: str
    outcomes: str
    mlflow_run_id: str | None
    accelerator_seconds: float
    train_images_per_second: float
    history: tuple[dict[str, float], ...]
    table: pa.Table
    events: tuple[Mapping[str, float], ...] = ()
    sha256: str = ""
    val_strong_robust_accuracy: float | None = None
    strong_table: pa.Table | None = None
    strong_outcomes: str | None = None
    corruptions: Mapping[str, Sequence[float]] | None = None

    def __post_init__(self) -> None:
        for name in ("val_robust_accuracy", "val_strong_robust_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        for name in ("accelerator_seconds", "train_images_per_second"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        _check_columns("table", self.table)
        if self.strong_table is not None:
            _check_columns("strong_table", self.strong_table)

    @property
    def corruption_accuracy(self) -> float | None:
        """Return the mean accuracy over all corruptions and severities."""
        return None if self.corruptions is None else mean_accuracy(self.corruptions)

    @property
    def key(self) -> tuple[str, str, float | None, str, float | None]:
        """Return what makes two models seeds of one configuration."""
        return (
            self.model,
            self.activation,
            self.alpha,
            self.attacker_activation,
            self.attacker_alpha,
        )

    @property
    def is_relu_baseline(self) -> bool:
        """Say whether differences of this model's architecture are measured against it."""
        return self.activation == "relu" and self.attacker_activation == "relu"


def _check_columns(field: str, table: pa.Table) -> None:
    missing = [name for name in OUTCOME_SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{field} must have the outcome columns, got none for {', '.join(missing)}"
        )


def display_names(models: Sequence[EvaluatedModel]) -> list[str]:
    """Return one display name per model, with the architecture where there are several."""
    several = len({model.model for model in models}) > 1
    return [(f"{model.model} · " if several else "") + _own_name(model) for model in models]


def _own_name(model: EvaluatedModel) -> str:
    return configuration_name(
        model.activation,
        alpha=model.alpha,
        attacker_activation=model.attacker_activation,
        attacker_alpha=model.attacker_alpha,
    )
