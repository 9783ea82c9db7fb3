"""Do one task, from its inputs to its committed record, wherever it runs."""

from sat_ray.sweep.execute.evaluation import (
    card_and_commit,
    evaluate_and_commit,
    images_of,
    model_of,
    parquet_bytes,
    rows_of,
    sampled_rows,
)
from sat_ray.sweep.execute.inputs import split_of
from sat_ray.sweep.execute.training import discard_states, train_and_commit

__all__ = [
    "card_and_commit",
    "discard_states",
    "evaluate_and_commit",
    "images_of",
    "model_of",
    "parquet_bytes",
    "rows_of",
    "sampled_rows",
    "split_of",
    "train_and_commit",
]
