"""Paired comparison of models evaluated on the same images.

Every figure is a function of outcome tables. A difference is that of the other model minus the
first, with Newcombe's paired interval; its p-value is McNemar's exact test, corrected by Holm over
all pairs. The test compares given checkpoints on these images; a comparison of two activations
needs several seeds of each (sat_ray.report.leaderboard.variation).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sat_ray.evaluation.intervals import (
    accuracy,
    mcnemar_p_value,
    paired_difference_interval,
    wilson_interval,
)
from sat_ray.report.compare.verdicts import JudgedModel, check_comparable, in_common, letter
from sat_ray.report.leaderboard.holm import holm
from sat_ray.report.leaderboard.summary import BoolArray, IntArray

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Hold accuracy(other) − accuracy(first), its 95 % interval, discordant counts and p-values."""

    difference: float
    low: float
    high: float
    only_first: int
    only_other: int
    p_value: float
    holm_p_value: float

    @property
    def within_noise(self) -> bool:
        """Say whether the difference is not significant, corrected over all pairs."""
        return self.holm_p_value > LEVEL


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Compare model `other` with model `first` (indices).

    lost, gained: rows of images that are robust in the first model only, in the other only.
    """

    first: int
    other: int
    robust: PairedTest
    clean: PairedTest
    lost: IntArray
    gained: IntArray


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Hold the number of images of one label, and how many of them are robust in each model."""

    label: int
    n: int
    robust: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Hold a comparison of models on the same images, the first against each other one."""

    models: tuple[JudgedModel, ...]
    pairs: tuple[Pair, ...]
    classes: tuple[ClassRow, ...]

    @property
    def n(self) -> int:
        """Return the number of images."""
        return len(self.models[0].images.image_ids)

    def same_verdicts(self, pair: Pair) -> float:
        """Return the share of images that are robust in both models of a pair, or in neither."""
        return 1 - (len(pair.lost) + len(pair.gained)) / self.n


def compare(
    models: Sequence[JudgedModel], *, common: bool = False, any_gradient: bool = False
) -> Comparison:
    """Compare the first model with each of the others.

    common: compare on the images that all models have, by their ids; any_gradient: the attacks may
    differ in the precision of their gradients. Raises ValueError wherever `check_comparable` does.
    """
    models = in_common(models) if common else models
    check_comparable(models, any_dataset=common, any_gradient=any_gradient)
    first = models[0].images
    robust = _tests([(first.robust, other.images.robust) for other in models[1:]])
    clean = _tests([(first.clean, other.images.clean) for other in models[1:]])
    pairs = [
        Pair(
            first=0,
            other=index,
            robust=robust[index - 1],
            clean=clean[index - 1],
            lost=np.flatnonzero(first.robust & ~models[index].images.robust),
            gained=np.flatnonzero(~first.robust & models[index].images.robust),
        )
        for index in range(1, len(models))
    ]
    classes = [
        ClassRow(
            label=int(label),
            n=int(of.sum()),
            robust=tuple(int(model.images.robust[of].sum()) for model in models),
        )
        for label in np.unique(first.labels)
        for of in [first.labels == label]
    ]
    return Comparison(models=tuple(models), pairs=tuple(pairs), classes=tuple(classes))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as plain JSON values, with every image that flipped."""
    models = comparison.models
    n = comparison.n
    return {
        "n": n,
        "models": [
            {"model": letter(index), "name": model.name}
            | _accuracy("robust", model.images.robust)
            | _accuracy("clean", model.images.clean)
            for index, model in enumerate(models)
        ],
        "pairs": [
            {
                "first": letter(pair.first),
                "other": letter(pair.other),
                "robust": dataclasses.asdict(pair.robust)
                | {"within_noise": pair.robust.within_noise},
                "same_verdicts": comparison.same_verdicts(pair),
                "clean": dataclasses.asdict(pair.clean) | {"within_noise": pair.clean.within_noise},
                "robust_in_first_alone": [
                    flip(models[pair.first], models[pair.other], row) for row in pair.lost.tolist()
                ],
                "robust_in_other_alone": [
                    flip(models[pair.first], models[pair.other], row)
                    for row in pair.gained.tolist()
                ],
            }
            for pair in comparison.pairs
        ],
        "classes": [
            {
                "label": row.label,
                "n": row.n,
                "robust_accuracy": {letter(i): count / row.n for i, count in enumerate(row.robust)},
            }
            for row in comparison.classes
        ],
    }


def flip(first: JudgedModel, other: JudgedModel, row: int) -> dict[str, Any]:
    """Describe one image that is robust in one of two models: id, label, predictions, steps."""
    described = {
        "image_id": int(first.images.image_ids[row]),
        "label": int(first.images.labels[row]),
    }
    for place, model in (("first", first), ("other", other)):
        described[place] = {  # type: ignore[assignment]
            "prediction": int(model.prediction[row]),
            "first_broken_step": int(model.step[row]),
            "attack": str(model.attack[row]),
        }
    return described


def _tests(pairs: Sequence[tuple[BoolArray, BoolArray]]) -> list[PairedTest]:
    """Test every (first, other) pair of correctness, (N,) bool each, and correct the p-values."""
    found = [_test(first, other) for first, other in pairs]
    corrected = holm([test.p_value for test in found])
    return [
        dataclasses.replace(test, holm_p_value=p_value)
        for test, p_value in zip(found, corrected, strict=True)
    ]


def _test(first: BoolArray, other: BoolArray) -> PairedTest:
    """Test one pair; its p-value is not corrected yet."""
    only_first = int((first & ~other).sum())
    only_other = int((~first & other).sum())
    both = int((first & other).sum())
    neither = len(first) - both - only_first - only_other
    low, high = paired_difference_interval(both, only_other, only_first, neither)
    p_value = mcnemar_p_value(only_first, only_other)
    return PairedTest(
        difference=(only_other - only_first) / len(first),
        low=low,
        high=high,
        only_first=only_first,
        only_other=only_other,
        p_value=p_value,
        holm_p_value=p_value,
    )


def _accuracy(kind: str, correct: BoolArray) -> dict[str, Any]:
    count, n = int(correct.sum()), len(correct)
    return {
        f"{kind}_accuracy": accuracy(count, n),
        f"{kind}_accuracy_interval": list(wilson_interval(count, n)),
    }
