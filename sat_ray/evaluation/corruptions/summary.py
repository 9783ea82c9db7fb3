"""Accuracy under common corruptions, from counts of right answers."""

import math
from collections.abc import Mapping, Sequence

Counts = dict[str, list[int]]
"""By kind: a number of images for each severity."""


def added(parts: Sequence[Counts]) -> Counts:
    """Return the sum of the counts of several sets of images, at least one."""
    return {
        kind: [sum(column) for column in zip(*(part[kind] for part in parts), strict=True)]
        for kind in parts[0]
    }


def accuracies(counts: Mapping[str, Sequence[int]], n: int) -> dict[str, list[float]]:
    """Return the accuracy of each kind and severity. n: images."""
    return {kind: [count / n for count in row] for kind, row in counts.items()}


def mean_accuracy(found: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over all kinds and severities, each counting the same."""
    values = [value for row in found.values() for value in row]
    return math.fsum(values) / len(values)
