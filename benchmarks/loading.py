"""What it costs to bring images to the training step, through `sat_ray.data` as it is today.

Today a split is read whole: Parquet shards of uint8, checksummed, into memory, and batches are rows of one tensor. Streaming of what does
not fit, decoding of encoded images ahead of use and augmentation are not there yet, and nothing here measures them.

    images_per_second_per_core    images read, checked, decoded and delivered once as float32 batches, on one thread, page cache warm
    wait_share                    share of a training epoch in the real `fit` (ResNet-18, batches of 64) spent fetching batches

--quick: 10,000 images of 32 pixels and a width of 32; else 50,000 and 64.
"""

import tempfile
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import common
import numpy as np
import psutil
import torch
from parts import batch_of, digits_at_32_pixels, scaled_resnet18, upsampled
from torch import Tensor

from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards import read_split, write_dataset
from sat_ray.data.sources import Raw, Source, dataset_source
from sat_ray.data.split import Split
from sat_ray.randomness import permutation
from sat_ray.storage import Storage
from sat_ray.threat import ThreatModel
from sat_ray.training import TrainingSettings, fit

HELD_OUT = 16


@dataclass(frozen=True)
class Size:
    """How much is measured. images: in the dataset; steps: training steps in a timed epoch; epochs: timed, after one to warm up."""

    images: int
    width: int
    steps: int
    rounds: int = 5
    batch: int = 64


FULL = Size(images=50_000, width=64, steps=4)
QUICK = Size(images=10_000, width=32, steps=4)
SMOKE = Size(images=200, width=8, steps=1, rounds=1, batch=16)


@dataclass(frozen=True)
class WatchedSplit(Split):
    """A split that remembers how long its batches took to fetch."""

    seconds: list[float] = field(default_factory=list)

    def take(self, rows: Tensor | slice) -> Split:
        """Keep these rows, and note the time."""
        started = perf_counter()
        batch = super().take(rows)
        self.seconds.append(perf_counter() - started)
        return batch


def made_up_source(count: int) -> Source:
    """Describe `count` images of 32 pixels: digits with noise in the lower half of the bits, so that they compress like photographs."""

    def read() -> Raw:
        raw = upsampled(dataset_source("digits").read())
        rows = np.arange(count + 2 * HELD_OUT) % len(raw.labels)
        noise = np.random.default_rng(0).integers(0, 16, size=(len(rows), *raw.images.shape[1:]), dtype=np.uint8)
        return Raw(raw.images[rows] ^ noise, raw.labels[rows], raw.class_names)

    return Source("noisy_digits", read, images=count + 2 * HELD_OUT, test=HELD_OUT, val=HELD_OUT, about="for the benchmark")


def deliver(split: Split, *, batch: int) -> None:
    """Fetch every image once, in a new order, as float32 batches in the layout of the models."""
    for rows in permutation(len(split), seed=0, epoch=0).split(batch):
        to_pixels(split.take(rows).images).contiguous(memory_format=torch.channels_last)


def measure_delivery(size: Size, folder: str) -> tuple[float, dict[str, Any]]:
    """Time reading and delivering on one thread; return images per second and the parts."""
    storage, process, threads = Storage.at(folder), psutil.Process(), torch.get_num_threads()
    manifest = write_dataset(made_up_source(size.images), storage, rows_per_shard=2048)
    torch.set_num_threads(1)
    split = read_split(storage, "train")
    deliver(split, batch=size.batch)
    before = process.memory_info().rss
    cases = {
        "read": lambda: common.seconds_of(lambda: read_split(storage, "train")),
        "deliver": lambda: common.seconds_of(lambda: deliver(split, batch=size.batch)),
    }
    seconds = common.interleaved(cases, rounds=size.rounds, warm_up=0)
    torch.set_num_threads(threads)
    stored = sum(len(storage.read(shard["file"])) for shard in manifest["shards"] if shard["split"] == "train")
    details = {
        "read_images_per_second": size.images / median(seconds["read"]),
        "deliver_images_per_second": size.images / median(seconds["deliver"]),
        "stored_bytes_per_image": stored / size.images,
        "memory_growth_mib": (process.memory_info().rss - before) / 2**20,
    }
    return median(size.images / (r + d) for r, d in zip(seconds["read"], seconds["deliver"], strict=True)), details


def measure_waiting(size: Size) -> tuple[float, dict[str, Any]]:
    """Train for some epochs and return the share of their time spent fetching batches."""
    rows = batch_of(digits_at_32_pixels()["train"], size.batch * size.steps)
    train = WatchedSplit(rows.images, rows.labels, rows.image_ids)
    settings = TrainingSettings(epochs=1000, global_batch_size=size.batch, batchnorm_group_size=size.batch, validate_every=1000)
    model = scaled_resnet18(width=size.width)
    reports = fit(model, train, rows.take(slice(0, 16)), settings=settings, threat_model=ThreatModel("linf", 8 / 255))
    next(reports)
    shares, rates = [], []
    for _ in range(size.rounds):
        train.seconds.clear()
        rate = next(reports).metrics["throughput/images_per_second"]
        shares.append(sum(train.seconds) * rate / len(train))
        rates.append(rate)
    return median(shares), {"train_images_per_second": median(rates), "wait_share_of_rounds": shares}


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__)
    about = common.machine()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        rate, delivery = measure_delivery(size, folder)
    share, waiting = measure_waiting(size)
    figures = {"images_per_second_per_core": rate, "wait_share": share}
    common.finish("loading: images to the training step", figures, {"size": asdict(size), **delivery, **waiting}, about, path=options.json)


if __name__ == "__main__":
    main()
