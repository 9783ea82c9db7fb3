"""Which configuration wins: the one with the best mean robust accuracy on validation over seeds.

A figure of the test split never decides.

That accuracy is what a cascade of strong attacks leaves of the validation images. One attack on
cross-entropy alone ranks models by how well their gradients hide, too: x * sigmoid(32 x) at epsilon
64/255 beats relu under PGD-100 and not under AutoAttack.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Validated:
    """One trained model. robust_accuracy: on validation, in [0, 1]."""

    configuration: str
    seed: int
    robust_accuracy: float


def mean_accuracy(values: Sequence[float]) -> float:
    """Return the mean, rounded so that equal accuracies summed in another order stay a tie."""
    return round(math.fsum(values) / len(values), 12)


def ranked(models: Sequence[Validated]) -> list[tuple[float, int]]:
    """Return (mean over seeds, index of the best seed's model) of every configuration, best first.

    Ties go to the configuration's name, among seeds to the lower seed.
    """
    seeds: dict[str, list[int]] = {}
    for index, model in enumerate(models):
        seeds.setdefault(model.configuration, []).append(index)
    means = {
        name: mean_accuracy([models[i].robust_accuracy for i in same])
        for name, same in seeds.items()
    }
    order = sorted(seeds, key=lambda name: (-means[name], name))
    best = {
        name: min(same, key=lambda i: (-models[i].robust_accuracy, models[i].seed))
        for name, same in seeds.items()
    }
    return [(means[name], best[name]) for name in order]
