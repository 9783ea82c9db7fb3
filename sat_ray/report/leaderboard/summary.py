"""From a table of outcomes to one verdict per image and the accuracies of one model."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sat_ray.attacks.spec import FINAL_SUFFIX
from sat_ray.evaluation.intervals import accuracy, wilson_interval

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Survival:
    """Hold one verdict per distinct image, all arrays (N,) in the order of `image_ids` (ascending).

    clean: the clean image is classified correctly; robust: no row of any attack broke it,
    final-iterate attacks not counted; by_attack: the same per attack, over all its restarts,
    final-iterate attacks included. An image that a cascade did not give to an attack, because an
    earlier one had broken it, is false.
    """

    image_ids: IntArray
    labels: IntArray
    clean: BoolArray
    robust: BoolArray
    by_attack: dict[str, BoolArray]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Hold the accuracies of one model on one split, with 95 % Wilson intervals over images.

    Accuracies are fractions of all `n` images. attacks: robust accuracy under each attack alone;
    final_iterate_attacks: the same for attacks that count their last point only, which never enter
    `robust_accuracy`; passes_per_image: forward-backward passes over attacks and restarts.
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
    """Summarise a table of outcomes; raise ValueError wherever `survival` does."""
    images = survival(table)
    n = len(images.image_ids)
    clean = int(images.clean.sum())
    robust = int(images.robust.sum())
    alone = {name: accuracy(int(survived.sum()), n) for name, survived in images.by_attack.items()}
    return Summary(
        n=n,
        clean_accuracy=accuracy(clean, n),
        clean_accuracy_interval=wilson_interval(clean, n),
        robust_accuracy=accuracy(robust, n),
        robust_accuracy_interval=wilson_interval(robust, n),
        attacks={name: value for name, value in alone.items() if not name.endswith(FINAL_SUFFIX)},
        final_iterate_attacks={
            name: value for name, value in alone.items() if name.endswith(FINAL_SUFFIX)
        },
        clean_errors=n - clean,
        passes_per_image=int(_integers(table, "passes").sum()) / n,
    )


def survival(table: pa.Table) -> Survival:
    """Return one verdict per image: the pointwise AND over attacks and restarts.

    Raises ValueError for what would inflate the accuracy: an empty table, an image with two
    labels, a robust clean error, a repeated (image_id, attack, restart), and an unbroken image
    without a row for an attack or one of its restarts.
    """
    if table.num_rows == 0:
        raise ValueError("table must have at least 1 outcome, got 0 rows")
    image_ids, first, position = np.unique(
        _integers(table, "image_id"), return_index=True, return_inverse=True
    )
    n = len(image_ids)
    label = _integers(table, "label")
    robust = _column(table, "robust").to_numpy().astype(np.bool_)
    clean = label == _integers(table, "clean_prediction")
    labels = label[first]
    _check_rows(image_ids[position], other_label=label != labels[position], wrong=robust & ~clean)
    attacks = np.asarray(_column(table, "attack").cast(pa.string()).to_pylist())
    restarts = _integers(table, "restart")
    counted = ~np.char.endswith(attacks, FINAL_SUFFIX)
    if not counted.any():
        raise ValueError(
            "attacks must hold at least 1 that counts every visited point, got "
            f"{', '.join(sorted(set(attacks.tolist())))}"
        )
    unbroken = _every(position[counted], robust[counted], n=n)
    by_attack: dict[str, BoolArray] = {}
    for name in sorted(set(attacks.tolist())):
        rows = attacks == name
        survived = _every(position[rows], robust[rows], n=n)
        times = _rows_by_restart(name, image_ids, position[rows], restarts[rows])
        _check_restarts(name, image_ids, times, survived=survived, unbroken=unbroken)
        by_attack[name] = survived & (times.sum(axis=1) > 0)
    return Survival(
        image_ids=image_ids,
        labels=labels,
        clean=_every(position, clean, n=n),
        robust=np.logical_and.reduce(
            [verdict for name, verdict in by_attack.items() if not name.endswith(FINAL_SUFFIX)]
        ),
        by_attack=by_attack,
    )


def _check_rows(image_ids: IntArray, *, other_label: BoolArray, wrong: BoolArray) -> None:
    """Raise ValueError if an image has two labels or a clean error counts as robust.

    All arrays: one entry per row of the table.
    """
    if other_label.any():
        raise ValueError(f"image_id {image_ids[other_label][0]} must have one label, got several")
    if wrong.any():
        raise ValueError(
            f"robust must be false for image_id {image_ids[wrong][0]}, a clean error, got true"
        )


def _rows_by_restart(
    attack: str, image_ids: IntArray, position: IntArray, restarts: IntArray
) -> IntArray:
    """Return the number of rows of each image and restart; raise ValueError for two."""
    numbers, index = np.unique(restarts, return_inverse=True)
    times = np.zeros((len(image_ids), len(numbers)), dtype=np.int64)
    np.add.at(times, (position, index), 1)
    if times.max() > 1:
        twice = image_ids[times.max(axis=1) > 1][0]
        raise ValueError(
            f"image_id {twice} must have each restart of attack {attack} once, got one twice"
        )
    return times


def _check_restarts(
    attack: str, image_ids: IntArray, times: IntArray, *, survived: BoolArray, unbroken: BoolArray
) -> None:
    """Raise ValueError if the attack left out an image or one of its restarts.

    times: (N, restarts) rows; survived: (N,) bool, this attack; unbroken: any attack that counts.
    A broken image may be missing: a cascade gives each attack the survivors only, and an engine
    may skip the later restarts of an image that an earlier one broke.
    """
    rows = times.sum(axis=1)
    restarts = times.shape[1]
    missed = ((rows == 0) & unbroken) | ((rows > 0) & survived & (rows < restarts))
    if missed.any():
        raise ValueError(
            f"attack {attack} must have an outcome for every image under each of its {restarts} "
            f"restarts, got none for {int(missed.sum())} of {len(image_ids)} images "
            f"(image_id {image_ids[missed][0]} first)"
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
        raise ValueError(f"table must have the outcome columns, got none for {name}")
    column = table.column(name)
    if column.null_count:
        raise ValueError(f"{name} must hold no nulls, got {column.null_count}")
    return column
