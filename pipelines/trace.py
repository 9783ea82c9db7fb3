#!/usr/bin/env python3
"""Follow one image through every step, without Ray and without MLflow: a tour for newcomers, with the real code and the real numbers.

python pipelines/trace.py                                       image 17 of the digits, a model trained for a few seconds
python pipelines/trace.py digits --image-id 1000 --search.activations silu:1
python pipelines/trace.py digits --image-id 1000 --checkpoint runs/digits/checkpoints/train/NAME
"""

import sys
import tempfile
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro

from pipelines.exit_status import leave_own_folder_off_the_path
from pipelines.recipes import DEFAULT, RECIPES
from pipelines.tour import tell
from sat_ray.cli import parse_recipe, storage_root
from sat_ray.config import SweepConfig
from sat_ray.data.shards import write_dataset
from sat_ray.data.sources import dataset_source
from sat_ray.jobs import train_and_commit
from sat_ray.journey import find, open_trained
from sat_ray.names import printable
from sat_ray.plan import dataset_uri, trial_job
from sat_ray.stages import Records
from sat_ray.storage import Storage
from sat_ray.training import EpochReport
from sat_ray.units import Dataset


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which image, and through which model."""

    image_id: Annotated[int, tyro.conf.arg(help="Index of the image in the dataset's own order.")] = 17
    checkpoint: Annotated[
        str, tyro.conf.arg(help="Folder of a trained model, local or s3://; empty: train the recipe's first search trial for the tour.")
    ] = ""
    storage: Annotated[
        str, tyro.conf.arg(help="Where prepared data may lie; empty: SAT_RAY_STORAGE, else ./runs. Nothing is written there.")
    ] = ""


def main() -> int:
    """Tell the journey, and return the exit status: 2 where there is no such image or model."""
    leave_own_folder_off_the_path()
    try:
        config, _, asked = parse_recipe(sys.argv[1:], RECIPES, default=DEFAULT, about=__doc__ or "", options=Asked())
        with tempfile.TemporaryDirectory(prefix="sat_ray-trace-") as scratch:
            trace(config, asked, Storage.at(scratch))
    except (ValueError, OSError, ArithmeticError) as error:
        print(printable(f"error: {error}", kept="\n"), file=sys.stderr)
        return 2
    return 0


def trace(config: SweepConfig, asked: Asked, scratch: Storage) -> None:
    """Print the tour. scratch: a folder for data that is not prepared yet and for the model that is trained here."""
    dataset = prepared(config, storage_root(asked.storage), scratch)
    place = find(dataset, asked.image_id)
    print(f"The journey of image {asked.image_id} of {dataset.manifest['dataset']}, recipe {config.recipe}: no Ray, no MLflow")
    uri = asked.checkpoint or train_here(config, dataset, scratch)
    torch.set_num_threads(config.resources.cpus_per_evaluation)
    trained = open_trained(uri, config, dataset)
    for section in tell(config, dataset, place, trained, trained_here=not asked.checkpoint):
        print(printable(f"\n{section}", kept="\n"))


def prepared(config: SweepConfig, root: Storage, scratch: Storage) -> Dataset:
    """Return the recipe's dataset: the shards that a sweep has left in the storage, or new ones in the scratch folder.

    Raises ValueError where that would be a copy of a whole folder of image files.
    """
    found, data = Dataset.open(dataset_uri(config, root)), config.data
    if found is not None:
        return found
    source, uri = dataset_source(data.dataset), dataset_uri(config, scratch)
    if source.encoded:
        raise ValueError(
            f"data.dataset {source.name} is not prepared in {root.uri}; run first: python pipelines/prepare.py with the same options"
        )
    write_dataset(
        source,
        Storage(uri),
        rows_per_shard=data.rows_per_shard,
        path=data.path,
        download=data.download,
    )
    made = Dataset.open(uri)
    assert made is not None
    return made


def train_here(config: SweepConfig, dataset: Dataset, scratch: Storage) -> str:
    """Train the first configuration of the search as a trial would be, and return its checkpoint."""
    job = trial_job(config, dataset, config.search.configurations()[0])
    torch.set_num_threads(config.resources.cpus_per_trial)
    print(
        f"training {job.configuration.name} for {job.until} epochs, as the search's longest trial (search.rungs); --checkpoint skips this"
    )

    def show(report: EpochReport) -> None:
        loss, accuracy = report.metrics["train/loss"], report.metrics["train/adversarial_accuracy"]
        print(f"  epoch {report.epoch + 1}/{job.until}  loss {loss:.3f}  accuracy on training attacks {100 * accuracy:.0f} %", flush=True)

    record = train_and_commit(job, Records(scratch), on_epoch=show)
    return scratch.located(record.payload["path"])


if __name__ == "__main__":
    sys.exit(main())
