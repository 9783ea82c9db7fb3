"""The table of outcomes: one row for each image, attack and restart."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from sat_ray.attacks import AttackSpec
from sat_ray.attacks.losses import margin
from sat_ray.evaluation.engine.verdicts import Verdicts
from sat_ray.evaluation.first_broken_step import CLEAN_ERROR, NEVER

OUTCOME_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("label", pa.int32()),
        ("clean_prediction", pa.int32()),
        ("clean_margin", pa.float32()),
        ("attack", pa.string()),
        ("restart", pa.int32()),
        ("adversarial_prediction", pa.int32()),
        ("adversarial_margin", pa.float32()),
        ("first_broken_step", pa.int32()),
        ("passes", pa.int32()),
        ("distance", pa.float32()),
        ("robust", pa.bool_()),
    ]
)


SORT_ORDER = [("attack", "ascending"), ("restart", "ascending"), ("image_id", "ascending")]


def survivors(table: pa.Table, column: pa.ChunkedArray) -> set[int]:
    """Return the image ids whose value in a bool `column` of `table` is true in every row.

    This is the pointwise AND over attacks and restarts.
    """
    ids = set(table["image_id"].to_pylist())
    return ids - set(table.filter(pc.invert(column))["image_id"].to_pylist())


def robust_image_ids(table: pa.Table) -> set[int]:
    """Return the ids of images that survived every attack and restart of the table."""
    return survivors(table, table["robust"])


def clean_correct_ids(table: pa.Table) -> set[int]:
    """Return the ids of images that are right before any attack."""
    return survivors(table, pc.equal(table["clean_prediction"], table["label"]))


def outcome_rows(
    rows: Tensor,
    verdicts: Verdicts,
    y: Tensor,
    ids: Tensor,
    clean: Tensor,
    *,
    spec: AttackSpec,
    restart: int,
) -> pa.Table:
    """Return the outcome rows of one run of an attack on these rows of the images."""
    columns = {
        "image_id": ids[rows],
        "label": y[rows],
        "clean_prediction": clean[rows].argmax(dim=1),
        "clean_margin": margin(clean[rows], y[rows]),
        "adversarial_prediction": verdicts.prediction,
        "adversarial_margin": verdicts.margin,
        "first_broken_step": verdicts.first_broken_step,
        "passes": verdicts.passes,
        "distance": verdicts.distance,
        "robust": verdicts.first_broken_step == NEVER,
    }
    arrays: dict[str, object] = {name: values.numpy() for name, values in columns.items()}
    arrays |= {"attack": [spec.name] * len(rows), "restart": np.full(len(rows), restart)}
    return pa.table(
        {field.name: pa.array(arrays[field.name], type=field.type) for field in OUTCOME_SCHEMA},
        schema=OUTCOME_SCHEMA,
    )


def clean_error_rows(
    rows: Tensor, y: Tensor, ids: Tensor, clean: Tensor, *, spec: AttackSpec
) -> pa.Table:
    """Return the outcome rows of images that are misclassified before any attack."""
    verdicts = Verdicts.empty(len(rows))
    verdicts.prediction = clean[rows].argmax(dim=1)
    verdicts.margin = margin(clean[rows], y[rows])
    verdicts.first_broken_step = torch.full((len(rows),), CLEAN_ERROR)
    return outcome_rows(rows, verdicts, y, ids, clean, spec=spec, restart=0)
