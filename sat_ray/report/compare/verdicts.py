"""One model's verdicts image by image, and whether the verdicts of models may be compared."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sat_ray.attacks.spec import FINAL_SUFFIX
from sat_ray.evaluation.first_broken_step import NEVER
from sat_ray.report.leaderboard.summary import BoolArray, IntArray, Survival, survival
from sat_ray.utils.serialization import flatten

NOT_DECISIVE = ("dataset", "seed", "cascade", "environment")


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedModel:
    """Hold one model's verdicts image by image, arrays (N,) in the order of `images.image_ids`.

    prediction, step, attack: prediction, first_broken_step and attack of the first outcome that
    broke the image (by attack, then restart); label, −1 and "" where none did.
    evaluation: what the file records about the evaluation
    (`sat_ray.sweep.records.merge_outcomes.evaluation_of`), or None.
    largest_distance: of all its adversarial points from their images.
    """

    name: str
    images: Survival
    prediction: IntArray
    step: IntArray
    attack: NDArray[np.str_]
    evaluation: Mapping[str, Any] | None
    largest_distance: float

    def take(self, chosen: BoolArray) -> "JudgedModel":
        """Return the verdicts of some images; chosen: (N,) bool."""
        images = Survival(
            image_ids=self.images.image_ids[chosen],
            labels=self.images.labels[chosen],
            clean=self.images.clean[chosen],
            robust=self.images.robust[chosen],
            by_attack={name: survived[chosen] for name, survived in self.images.by_attack.items()},
        )
        return dataclasses.replace(
            self,
            images=images,
            prediction=self.prediction[chosen],
            step=self.step[chosen],
            attack=self.attack[chosen],
        )


def judge(
    table: pa.Table, *, name: str, evaluation: Mapping[str, Any] | None = None
) -> JudgedModel:
    """Return a model's verdicts from its outcomes; raises ValueError wherever `survival` does."""
    images = survival(table)
    attacks = np.asarray(table["attack"].to_pylist(), dtype=np.str_)
    broken = ~table["robust"].to_numpy() & ~np.char.endswith(attacks, FINAL_SUFFIX)
    position = np.searchsorted(images.image_ids, table["image_id"].to_numpy()[broken])
    order = np.lexsort((table["restart"].to_numpy()[broken], attacks[broken], position))
    where, first = np.unique(position[order], return_index=True)
    rows = np.flatnonzero(broken)[order[first]]
    prediction = images.labels.copy()
    step = np.full(len(images.labels), NEVER, dtype=np.int64)
    attack = np.full(len(images.labels), "", dtype=attacks.dtype)
    prediction[where] = table["adversarial_prediction"].to_numpy()[rows]
    step[where] = table["first_broken_step"].to_numpy()[rows]
    attack[where] = attacks[rows]
    return JudgedModel(
        name=name,
        images=images,
        prediction=prediction,
        step=step,
        attack=attack,
        evaluation=evaluation,
        largest_distance=float(table["distance"].to_numpy().max()),
    )


def in_common(models: Sequence[JudgedModel]) -> list[JudgedModel]:
    """Restrict models to the images that all of them have; raise ValueError without any."""
    shared = models[0].images.image_ids
    for model in models[1:]:
        shared = np.intersect1d(shared, model.images.image_ids, assume_unique=True)
    if len(shared) == 0:
        raise ValueError("outcomes must share at least 1 image, got none")
    return [model.take(np.isin(model.images.image_ids, shared)) for model in models]


def check_comparable(
    models: Sequence[JudgedModel], *, any_dataset: bool = False, any_gradient: bool = False
) -> None:
    """Raise ValueError unless there are two models or more with the same images and attacks.

    Labels, attacks and threat models must be the same too; the message names what differs.
    any_dataset: trust image ids and labels where the files record different datasets;
    any_gradient: the attacks may differ in the precision of their gradients.
    """
    if len(models) < 2:
        raise ValueError(f"models must be at least 2, got {len(models)}")
    for index in range(1, len(models)):
        if not any_dataset:
            _check_same_dataset(models, index)
        _check_same_images(models, index)
        _check_same_labels(models, index)
        _check_same_attacks(models, index, any_gradient=any_gradient)


def counted_attacks(model: JudgedModel) -> list[str]:
    """Return the attacks behind a model's robust accuracy, without their views.

    The view through which a model is attacked belongs to the model. The attacks are those that
    the file records, since a cascade may break every image before its last attack; where it
    records none, those that it holds rows of.
    """
    held = {
        _without_view(name) for name in model.images.by_attack if not name.endswith(FINAL_SUFFIX)
    }
    return sorted(counted_specs(model) or held)


def counted_specs(model: JudgedModel) -> dict[str, dict[str, Any]]:
    """Return the recorded settings of those attacks by name, without their views; {} if none."""
    specs = (model.evaluation or {}).get("attacks", [])
    viewless = {"name", "attacker_activation", "attacker_alpha"}
    return {
        _without_view(spec["name"]): {
            field: value for field, value in flatten(spec).items() if field not in viewless
        }
        for spec in specs
        if not spec.get("final_iterate", False)
    }


def differing_settings(models: Sequence[JudgedModel]) -> list[str]:
    """Name what the files record differently and a comparison allows: NOT_DECISIVE's fields."""
    recorded = [
        flatten({field: (model.evaluation or {}).get(field) for field in NOT_DECISIVE})
        for model in models
    ]
    fields = sorted(set().union(*recorded))
    return [
        field
        for field in fields
        if any(one.get(field) != recorded[0].get(field) for one in recorded)
    ]


def letter(index: int) -> str:
    """Name a model by its place: A … Z, AA, AB …"""
    return ("" if index < 26 else letter(index // 26 - 1)) + chr(ord("A") + index % 26)


def _named(models: Sequence[JudgedModel], index: int) -> str:
    return f"{letter(index)} ({models[index].name})"


def _check_same_dataset(models: Sequence[JudgedModel], index: int) -> None:
    ours, theirs = ((model.evaluation or {}).get("dataset") for model in (models[0], models[index]))
    if ours and theirs and ours != theirs:
        raise ValueError(
            f"datasets differ: {_named(models, 0)} was evaluated on {ours[:12]}, "
            f"{_named(models, index)} on {theirs[:12]}; compare outcomes of the same dataset, or "
            "use --common to trust image ids and labels"
        )


def _check_same_images(models: Sequence[JudgedModel], index: int) -> None:
    parts = []
    differ = False
    for own, other in ((0, index), (index, 0)):
        ids = models[own].images.image_ids
        alone = np.setdiff1d(ids, models[other].images.image_ids, assume_unique=True)
        first = f" (image_id {alone[0]} first)" if len(alone) else ""
        parts.append(f"{_named(models, own)} has {len(ids)} images, {len(alone)} alone{first}")
        differ = differ or len(alone) > 0
    if differ:
        raise ValueError(
            f"image sets differ: {'; '.join(parts)}; compare outcomes of the same images, or use "
            "--common for the images that all of them have"
        )


def _check_same_labels(models: Sequence[JudgedModel], index: int) -> None:
    ours = models[0].images
    theirs = models[index].images
    if len(differing := np.flatnonzero(ours.labels != theirs.labels)):
        row = differing[0]
        raise ValueError(
            f"labels differ for {len(differing)} images: image_id {ours.image_ids[row]} is "
            f"{ours.labels[row]} in {_named(models, 0)} and {theirs.labels[row]} in "
            f"{_named(models, index)}; compare outcomes with the same labels"
        )


def _check_same_attacks(models: Sequence[JudgedModel], index: int, *, any_gradient: bool) -> None:
    """Raise ValueError where the attacks have other names or other recorded settings."""
    names = {i: counted_attacks(models[i]) for i in (0, index)}
    bare = {i: [_without_gradient(name) for name in names[i]] for i in names}
    only_gradient = bare[0] == bare[index] and names[0] != names[index]
    if bare[0] != bare[index] or (only_gradient and not any_gradient):
        both = "; ".join(f"{_named(models, i)} {', '.join(names[i])}" for i in names)
        way = ", or use --any-gradient" if only_gradient else ""
        raise ValueError(f"attacks differ: {both}; compare outcomes of the same attacks{way}")
    _check_same_settings(models, index, any_gradient=any_gradient)


def _check_same_settings(models: Sequence[JudgedModel], index: int, *, any_gradient: bool) -> None:
    """Raise ValueError where both files record an attack with different settings."""
    one, other = (
        {_without_gradient(name): spec for name, spec in counted_specs(models[i]).items()}
        for i in (0, index)
    )
    for name in sorted(one.keys() & other.keys()):
        for field in sorted(one[name].keys() | other[name].keys()):
            a = one[name].get(field)
            b = other[name].get(field)
            if a != b and not (any_gradient and field == "gradient"):
                raise ValueError(
                    f"attacks differ: {field} of {name} is {a} in {_named(models, 0)} and {b} in "
                    f"{_named(models, index)}; compare outcomes of the same attack and threat model"
                )


def _without_view(attack: str) -> str:
    return re.sub(r"@\w+", "", attack)


def _without_gradient(attack: str) -> str:
    return re.sub(r"-(float32|bf16|fp16)(-compiled)?(?=@|-|$)", "", attack)
