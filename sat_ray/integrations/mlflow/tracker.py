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


@dataclass(frozen=True)
class Used:
    """Images that a run used. context: train, val or test; digest: of their contents."""

    name: str
    digest: str
    context: str
    profile: Mapping[str, object]


@dataclass(frozen=True)
class Holder:
    """A version of a registered model. source: URI of the model that it was made from."""

    version: str
    source: str
    tags: Mapping[str, str]


class Tracker(Protocol):
    """Write runs keyed by what they show, so that a restart adopts them instead of doubling them.

    A search may have hundreds of trials that take seconds: one is written in four requests (`run`, `uses`, and `complete` with its
    parameters and metrics, which takes two).
    """

    @property
    def experiment_id(self) -> str:
        """Return the id of the experiment that holds the runs."""
        ...

    def share(self, key: str, state: Mapping[str, object]) -> None:
        """Keep a view of the page of runs under a key that an address can name."""
        ...

    def run(
        self,
        key: str,
        *,
        name: str,
        parent: str | None = None,
        tags: Mapping[str, str],
        params: Mapping[str, object],
    ) -> str:
        """Return the id of the run with this key, made now if there is none; parent: a run id."""
        ...

    def is_complete(self, run_id: str, *, content: str) -> bool:
        """Say whether this run was ended by `complete` with the same content hash."""
        ...

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Write metric values; the same point written twice counts once."""
        ...

    def artifact(self, run_id: str, path: str, data: bytes) -> None:
        """Attach a file under a relative path, replacing an earlier one."""
        ...

    def uses(self, run_id: str, data: Sequence[Used]) -> None:
        """Say which data a run used."""
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

    def complete(
        self,
        run_id: str,
        *,
        content: str,
        points: Sequence[Point] = (),
        params: Mapping[str, object] | None = None,
        failed: bool = False,
    ) -> None:
        """Write the last of what a run shows, metric values and parameters, with the hash of all of it, and end it."""
        ...

    def register(
        self,
        model_uri: str,
        *,
        name: str,
        alias: str | None,
        tags: Mapping[str, str],
        run_id: str,
        note: str = "",
    ) -> str:
        """Make a version of a registered model, or find the one made from this URI, and point the alias at it; return the version.

        alias: None to leave it where it is; note: Markdown that describes the version.
        """
        ...

    def holder(self, name: str, *, alias: str) -> Holder | None:
        """Return the version of a registered model that an alias points at, None where there is none."""
        ...
