"""What the tracker takes and returns: metric values, used images, versions of registered models."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One value of a metric.

    step: epoch or epochs done, a whole number; seconds: unix time of the record that holds it.
    """

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
