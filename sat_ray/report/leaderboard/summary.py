"""From a table of outcomes to one verdict per image and the accuracies of one model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sat_ray.evaluation.intervals import accuracy, wilson_interval

FINAL_ITERATE_SUFFIX = "-final"

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Survival:
    """Hold one verdict per distinct image, all arrays (N,) in the order of `image_ids` (ascending).

    clean: the clean image is classified correctly. robust: no row of any attack broke it, final-iterate attacks left out.
    by_attack: the same per attack, over all its restarts, final-iterate attacks included; false for an image that a cascade did not give
    to the attack, because an attack before it had broken the image.
    """

    image_ids: IntArray
    labels: IntArray
    clean: BoolArray
    robust: BoolArray
    by_attack: dict[str, BoolArray]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Hold the accuracies of one model on one split, fractions of all `n` images, with 95 % Wilson intervals over images.

    attacks: robust accuracy under each attack alone. final_iterate_attacks: the same for attacks that count their last point only;
    these never enter `robust_accuracy`. passes_per_image: forward-backward passes, summed over attacks and restarts, per image.
    """

    n: int
    clean_accuracy: float
    clean_accuracy_interval: tuple[float, float]
    robust_accuracy: float
    robust_accuracy_interval: tuple[float, float]
    attacks: dict[str, float]
    final_iterate_attacks: dict[str, float]
    clean_errors: int
    passes_per_image: float


def summarise(table: pa.Table) -> Summary:
    """Summarise a table of outcomes into accuracies of all its images; raise ValueError wherever `survival` does."""
    return summarise_survival(survival(table), passes=int(_integers(table, "passes").sum()))


def summarise_survival(images: Survival, *, passes: int) -> Summary:
    """Summarise verdicts per image; passes: forward-backward passes spent on all of them together."""
    n = len(images.image_ids)
    clean, robust = int(images.clean.sum()), int(images.robust.sum())
    alone = {name: accuracy(int(survived.sum()), n) for name, survived in images.by_attack.items()}
    return Summary(
        n=n,
        clean_accuracy=accuracy(clean, n),
        clean_accuracy_interval=wilson_interval(clean, n),
        robust_accuracy=accuracy(robust, n),
        robust_accuracy_interval=wilson_interval(robust, n),
        attacks={
            name: value for name, value in alone.items() if not name.endswith(FINAL_ITERATE_SUFFIX)
        },
        final_iterate_attacks={
            name: value for name, value in alone.items() if name.endswith(FINAL_ITERATE_SUFFIX)
        },
        clean_errors=n - clean,
        passes_per_image=passes / n,
    )


def survival(table: pa.Table) -> Survival:
    """Return one verdict per image from a table of outcomes, the pointwise AND over its attacks and restarts.

    Raises ValueError for an empty table, an image with two labels, a robust clean error, a repeated (image_id, attack, restart), or an
    image that, though unbroken, an attack or one of its restarts never saw: each of these would inflate the accuracy.
    """
    if table.num_rows == 0:
        raise ValueError("table has 0 rows; allowed: at least one outcome")
    image_ids, first, position = np.unique(
        _integers(table, "image_id"), return_index=True, return_inverse=True
    )
    labels = _integers(table, "label")
    robust = _column(table, "robust").to_numpy().astype(np.bool_)
    clean_row = labels == _integers(table, "clean_prediction")
    _check_rows(
        image_ids,
        position,
        labels=labels,
        label_of_image=labels[first],
        robust_clean_errors=robust & ~clean_row,
    )
    attacks = np.asarray(_column(table, "attack").cast(pa.string()).to_pylist())
    restarts = _integers(table, "restart")
    by_attack: dict[str, BoolArray] = {}
    counted_row = ~np.char.endswith(attacks, FINAL_ITERATE_SUFFIX)
    unbroken = _every(position[counted_row], robust[counted_row], n=len(image_ids))
    for name in sorted(set(attacks.tolist())):
        rows = attacks == name
        _check_restarts(
            name,
            image_ids,
            position[rows],
            restarts=restarts[rows],
            robust=robust[rows],
            unbroken=unbroken,
        )
        seen = np.bincount(position[rows], minlength=len(image_ids)) > 0
        by_attack[name] = seen & _every(position[rows], robust[rows], n=len(image_ids))
    counted = [
        survived for name, survived in by_attack.items() if not name.endswith(FINAL_ITERATE_SUFFIX)
    ]
    if not counted:
        raise ValueError(
            f"attack is {', '.join(by_attack)}; allowed: at least one attack that counts every visited point"
        )
    return Survival(
        image_ids=image_ids,
        labels=labels[first],
        clean=_every(position, clean_row, n=len(image_ids)),
        robust=np.logical_and.reduce(counted),
        by_attack=by_attack,
    )


def _check_rows(
    image_ids: IntArray,
    position: IntArray,
    *,
    labels: IntArray,
    label_of_image: IntArray,
    robust_clean_errors: BoolArray,
) -> None:
    """Raise ValueError if an image has two labels or a misclassified clean image counts as robust."""
    other_label = labels != label_of_image[position]
    if other_label.any():
        raise ValueError(
            f"label of image_id {image_ids[position[other_label][0]]} differs between rows; allowed: one label per image"
        )
    if robust_clean_errors.any():
        raise ValueError(
            f"robust is true for image_id {image_ids[position[robust_clean_errors][0]]}, a clean error; allowed: false"
        )


def _check_restarts(
    attack: str,
    image_ids: IntArray,
    position: IntArray,
    *,
    restarts: IntArray,
    robust: BoolArray,
    unbroken: BoolArray,
) -> None:
    """Raise ValueError if the attack repeats an (image, restart), missed an image, or left one without a restart.

    unbroken: (N,) bool, by any attack that counts. A broken image may be missing: a cascade gives each attack the survivors alone.
    """
    numbers, restart_index = np.unique(restarts, return_inverse=True)
    seen = np.zeros((len(image_ids), len(numbers)), dtype=np.int64)
    np.add.at(seen, (position, restart_index), 1)
    if seen.max() > 1:
        raise ValueError(
            f"image_id {image_ids[seen.max(axis=1) > 1][0]} has a restart of attack {attack} twice; allowed: once"
        )
    times = seen.sum(axis=1)
    # A broken image stays broken, so an engine may skip its later restarts; an unbroken one must have met them all.
    missed = ((times == 0) & unbroken) | (
        (times > 0) & _every(position, robust, n=len(image_ids)) & (times < len(numbers))
    )
    if missed.any():
        raise ValueError(
            f"attack {attack} has no outcome for {int(missed.sum())} of {len(image_ids)} images (image_id {image_ids[missed][0]} first); "
            f"allowed: every image under each of its {len(numbers)} restarts"
        )


def _every(position: IntArray, values: BoolArray, *, n: int) -> BoolArray:
    """Return (n,) bool: all rows at that position are true."""
    failures = np.bincount(position[~values], minlength=n)
    return np.equal(failures, 0)


def _integers(table: pa.Table, name: str) -> IntArray:
    values: IntArray = _column(table, name).to_numpy().astype(np.int64)
    return values


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column; raise ValueError if it is missing or holds nulls."""
    if name not in table.column_names:
        raise ValueError(f"table has no column {name}; allowed: the outcome columns")
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"{name} holds {column.null_count} nulls; allowed: none")
    return column
