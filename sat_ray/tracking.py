"""What the system asks of an experiment tracker. Runs are projections of committed records: any of this may be repeated at any time."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True)
class Point:
    """One value of a metric. step: epoch or epochs done, a whole number; seconds: unix time of the record that it comes from."""

    name: str
    value: float
    step: int
    seconds: float


class Tracker(Protocol):
    """Write runs keyed by what they show, so that a restart adopts them instead of doubling them."""

    def run(self, key: str, *, name: str, parent: str | None = None, tags: Mapping[str, str], params: Mapping[str, object]) -> str:
        """Return the id of the run with this key, made now if there is none; parent: a run id."""
        ...

    def is_complete(self, run_id: str, *, content: str) -> bool:
        """Say whether `complete` was called for this run with the same content hash."""
        ...

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Write metric values; the same point written twice counts once."""
        ...

    def artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Attach a file under a relative path, replacing an earlier one."""
        ...

    def dataset(self, run_id: str, *, name: str, digest: str, context: str, profile: Mapping[str, object]) -> None:
        """Say which data a run used. context: train, val or test."""
        ...

    def note(self, run_id: str, markdown: str) -> None:
        """Set the run's description."""
        ...

    def watch(self, run_id: str) -> AbstractContextManager[None]:
        """Write the load of this machine to a run for as long as the context is open."""
        ...

    def model(self, run_id: str, model: nn.Module, *, name: str, input_shape: Sequence[int]) -> str:
        """Attach a model that loads without this package ([0, 1] images of input_shape -> logits) and return its URI."""
        ...

    def complete(self, run_id: str, *, content: str, failed: bool = False) -> None:
        """End a run and remember the hash of what it shows."""
        ...

    def register(self, model_uri: str, *, name: str, alias: str, tags: Mapping[str, str], run_id: str, note: str = "") -> str:
        """Make a version of a registered model, or find the one made from this URI, and point the alias at it; return the version.

        note: Markdown that describes the version.
        """
        ...
