"""Read files of outcomes: one per model, or a folder of its parts.

This module does not load torch, so that a command is quick.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sat_ray.storage.store import Storage

EVALUATION_KEY = b"sat_ray.evaluation"
KEY = ["attack", "restart", "image_id"]
COLUMNS = (
    *KEY,
    "label",
    "clean_prediction",
    "adversarial_prediction",
    "first_broken_step",
    "passes",
    "distance",
    "robust",
)
_WRITTEN = "give outcomes as the evaluate stage writes them"
_ONE_MODEL = (
    "give one file, or a folder with the parts of one model "
    "(the outcomes/ of a sweep holds one file per model: name those)"
)


def evaluation_of(table: pa.Table) -> dict[str, Any] | None:
    """Return how a merged table was evaluated; None where its metadata does not contain it.

    It holds hashes of weights and dataset, attacks, seed and environment. Raises ValueError where
    that is no JSON object.
    """
    text = (table.schema.metadata or {}).get(EVALUATION_KEY)
    try:
        found: Any = json.loads(text) if text else None
    except ValueError as error:
        raise ValueError(f"metadata {EVALUATION_KEY.decode()} is no JSON ({error})") from None
    if not (found is None or isinstance(found, dict)):
        raise ValueError(
            f"metadata {EVALUATION_KEY.decode()} must be a JSON object, "
            f"got a {type(found).__name__}"
        )
    return found or None


def read_outcomes(uri: str) -> pa.Table:
    """Read one model's outcomes, the columns that verdicts need.

    uri: of a Parquet file or a folder of parts, local or s3://. Raises FileNotFoundError where
    there is neither, ValueError for a file that is not Parquet or lacks columns, for parts of
    several evaluations, and for an (attack, restart, image_id) that occurs twice.
    """
    folder, names = _files_at(uri)
    tables = [_read_table(folder, name) for name in names]
    evaluations = [
        _evaluation(table, folder.full(name)) for table, name in zip(tables, names, strict=True)
    ]
    for name, evaluation in zip(names, evaluations, strict=True):
        if evaluation != evaluations[0]:
            raise ValueError(
                f"{folder.uri} holds outcomes of several evaluations ({names[0]}, {name}); "
                f"{_ONE_MODEL}"
            )
    table = pa.concat_tables(tables)
    _check_unique(table, uri)
    return table


def _check_unique(table: pa.Table, uri: str) -> None:
    """Raise ValueError where an (attack, restart, image_id) occurs twice."""
    counted = table.group_by(KEY).aggregate([([], "count_all")])
    doubled = counted.filter(pc.greater(counted["count_all"], 1)).sort_by(
        [(column, "ascending") for column in KEY]
    )
    if doubled.num_rows:
        row = doubled.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"{uri} holds image_id {row['image_id']} twice for attack {row['attack']}, "
            f"restart {row['restart']} ({doubled.num_rows} rows are doubled); {_ONE_MODEL}"
        )


def _evaluation(table: pa.Table, place: str) -> dict[str, Any] | None:
    try:
        return evaluation_of(table)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; {_WRITTEN}") from None


def _files_at(uri: str) -> tuple[Storage, list[str]]:
    """Return the folder and the Parquet files in it that `uri` names.

    That is the file itself, whatever its name, or all files of a folder.
    """
    here = Storage.at(uri)
    above, name = Storage.of_file(uri)
    if name and above.is_file(name):
        return above, [name]
    names = [one for one in here.names("") if one.endswith(".parquet")]
    if not names:
        raise FileNotFoundError(
            f"no outcomes at {uri}; give a Parquet file or a folder that holds some"
        )
    return here, names


def _read_table(folder: Storage, name: str) -> pa.Table:
    data = folder.read(name)
    place = folder.full(name)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{place} is no Parquet file ({str(error).splitlines()[0]}); {_WRITTEN}"
        ) from None
    if missing := [column for column in COLUMNS if column not in file.schema_arrow.names]:
        raise ValueError(f"{place} lacks the columns {', '.join(missing)}; {_WRITTEN}")
    try:
        return file.read(columns=list(COLUMNS)).select(COLUMNS)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{place} is damaged ({str(error).splitlines()[0]}); {_WRITTEN}") from None
