"""Which configuration wins: by the mean over seeds of its robust accuracy on validation, never by a figure of the test split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Validated:
    """One trained model: the name of its configuration, its seed, and its robust accuracy on validation in [0, 1]."""

    configuration: str
    seed: int
    val_robust_accuracy: float


def ranked(models: Sequence[Validated]) -> list[tuple[float, int]]:
    """Return (mean over seeds, index of the best seed's model) of every configuration, best first.

    Ties go to the configuration's name, among seeds to the lower seed.
    """
    seeds: dict[str, list[int]] = {}
    for index, model in enumerate(models):
        seeds.setdefault(model.configuration, []).append(index)
    # Rounded, because equal accuracies summed in another order may differ in the last bit and a tie must stay a tie.
    means = {name: round(math.fsum(models[i].val_robust_accuracy for i in same) / len(same), 12) for name, same in seeds.items()}
    order = sorted(seeds, key=lambda name: (-means[name], name))
    return [(means[name], min(seeds[name], key=lambda i: (-models[i].val_robust_accuracy, models[i].seed))) for name in order]
