"""The datasets of a sweep: where they lie, and whether they are prepared."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sat_ray.data.class_names import extra_labels
from sat_ray.data.shards.manifest import (
    MANIFEST,
    REMEDY,
    SCHEMA_VERSION,
    CorruptShardError,
    training_fault,
)
from sat_ray.storage.store import Storage
from sat_ray.sweep.tasks import Dataset
from sat_ray.utils.code_hash import code_hashes
from sat_ray.utils.import_string import is_reference, slug
from sat_ray.utils.serialization import content_hash

if TYPE_CHECKING:
    from sat_ray.sweep.config import DataSettings, SweepConfig


def dataset_uri(config: "SweepConfig", root: Storage) -> str:
    """Return the folder of the sweep's dataset; sweeps of the same data share it."""
    return data_uri(config.data, root)


def data_uri(data: "DataSettings", root: Storage) -> str:
    """Return the folder of a dataset."""
    name = data.dataset
    code = (
        {"code": code_hashes((name.partition(":")[0],))} if is_reference(name) else {}
    )  # other code, perhaps other images
    key = content_hash({"data": data.identity(), "schema": SCHEMA_VERSION, **code})[:8]
    return root.full(f"data/{slug(name)}-{key}")


def prepared_dataset(config: "SweepConfig", root: Storage) -> Dataset | None:
    """Open the sweep's dataset, with its extra images; None where any of it is not prepared.

    CorruptShardError names what is damaged, ValueError what does not fit.
    """
    dataset = Dataset.open(dataset_uri(config, root))
    more = config.data.extra_data()
    if dataset is not None:
        require_trainable(dataset)
    if dataset is None or more is None:
        return dataset
    extra = Dataset.open(data_uri(more, root))
    return None if extra is None else with_extra(dataset, extra)


def require_trainable(dataset: Dataset) -> None:
    """Raise CorruptShardError where a manifest lacks what training needs."""
    if fault := training_fault(dataset.manifest):
        raise CorruptShardError(f"{dataset.uri}/{MANIFEST}: {fault}; {REMEDY}")


def with_extra(dataset: Dataset, extra: Dataset) -> Dataset:
    """Return a dataset with extra images; ValueError where these have another shape or classes."""
    extra_labels(dataset.manifest, extra.manifest)
    return replace(dataset, extra=extra)
