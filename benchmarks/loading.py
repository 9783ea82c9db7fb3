"""Measure what it costs to bring images to the training step through `sat_ray.data`.

    images_per_second_per_core    JPEG images streamed from Parquet shards: read, checked, decoded
                                  and delivered as uint8 batches, per second of processor time
    wait_share                    share of a training epoch in the real `fit` (ResNet-18 at 32
                                  pixels, batches of 64) spent waiting for streamed JPEG images,
                                  with one thread for decoding

Besides: the same images from memory; threads compared with worker processes of torch's DataLoader;
the memory of a streamed epoch after each tenth.

--quick: 1,500 JPEG images of 224 pixels and a width of 32; otherwise 10,000 and 64.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import common
import numpy as np
import psutil
import torch
from parts import batch_of, digits_enlarged, scaled_resnet18, upsampled
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sat_ray.data.epoch_order import epoch_order
from sat_ray.data.images import Storing
from sat_ray.data.loading import Loader, Streamed
from sat_ray.data.pixels import to_pixels
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.reading import read_split
from sat_ray.data.sources.registry import Raw, Source, dataset_source
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingSettings, fit
from sat_ray.utils.randomness import permutation

HELD_OUT = 16


@dataclass(frozen=True)
class Size:
    """How much is measured. images: raw ones of 32 pixels; pictures: JPEG ones of `side`
    pixels; steps: training steps in a timed epoch.
    """

    images: int
    pictures: int
    width: int
    steps: int
    side: int = 224
    rounds: int = 5
    batch: int = 64
    rows_per_shard: int = 128


FULL = Size(images=50_000, pictures=10_000, width=64, steps=4, rows_per_shard=512)
QUICK = Size(images=10_000, pictures=1_500, width=32, steps=4, rounds=3)
SMOKE = Size(
    images=200, pictures=70, width=8, steps=1, side=40, rounds=1, batch=16, rows_per_shard=20
)


class WatchedLoader:
    """A loader that remembers how long its batches were waited for."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.shards = loader.shards
        self.ids = loader.ids
        self.seconds = list[float]()

    def batches(self, plan: Tensor) -> Iterator[list[Split]]:
        """Deliver, and note the time of each wait."""
        batches = self.loader.batches(plan)
        while True:
            started = perf_counter()
            found = next(batches, None)
            self.seconds.append(perf_counter() - started)
            if found is None:
                return
            yield found


class InWorkers(IterableDataset):  # type: ignore[type-arg]
    """Every k-th group of a plan in each of k worker processes,
    each with one thread and shards of its own.
    """

    def __init__(self, storage: Storage, plan: Tensor) -> None:
        self.storage, self.plan = storage, plan

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield groups as tensors."""
        worker = get_worker_info()
        assert worker is not None
        torch.set_num_threads(1)
        for (group,) in Streamed(self.storage, "train", threads=1).batches(
            self.plan[worker.id :: worker.num_workers]
        ):
            yield group.images, group.labels, group.image_ids


def made_up_source(count: int) -> Source:
    """Describe `count` images of 32 pixels: digits with noise in the lower half of the bits, so
    that they compress like photographs.
    """

    def read() -> Raw:
        raw = upsampled(dataset_source("digits").read())
        rows = np.arange(count + 2 * HELD_OUT) % len(raw.labels)
        noise = np.random.default_rng(0).integers(
            0, 16, size=(len(rows), *raw.images.shape[1:]), dtype=np.uint8
        )
        return Raw(raw.images[rows] ^ noise, raw.labels[rows], raw.class_names)

    return Source(
        "noisy_digits",
        read,
        images=count + 2 * HELD_OUT,
        test=HELD_OUT,
        val=HELD_OUT,
        about="for the benchmark",
    )


def deliver(split: Split, *, batch: int) -> None:
    """Fetch every image once, in a new order, as float32 batches in the layout of the models."""
    for rows in permutation(len(split), seed=0, epoch=0).split(batch):
        to_pixels(split.take(rows).images).contiguous(memory_format=torch.channels_last)


def measure_delivery(size: Size, folder: str) -> tuple[float, dict[str, Any]]:
    """Time reading and delivering raw images from memory on one thread;
    return images per second and the parts.
    """
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
    stored = sum(
        len(storage.read(shard["file"]))
        for shard in manifest["shards"]
        if shard["split"] == "train"
    )
    details = {
        "read_images_per_second": size.images / median(seconds["read"]),
        "deliver_images_per_second": size.images / median(seconds["deliver"]),
        "stored_bytes_per_image": stored / size.images,
        "memory_growth_mib": (process.memory_info().rss - before) / 2**20,
    }
    return median(
        size.images / (r + d) for r, d in zip(seconds["read"], seconds["deliver"], strict=True)
    ), details


def write_pictures(folder: str, count: int, *, side: int, rows_per_shard: int) -> Storage:
    """Write `count` noisy digits enlarged to `side` pixels as JPEG shards, with a few held out."""
    from PIL import Image

    raw, found = made_up_source(count).read(), Path(folder) / "pictures"
    for number, (image, label) in enumerate(zip(raw.images, raw.labels.tolist(), strict=True)):
        path = (
            found
            / ("val" if number < HELD_OUT else "test" if number < 2 * HELD_OUT else "train")
            / str(label % 2)
            / f"{number:06d}.jpg"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).resize(
            (side, side), Image.Resampling.BICUBIC
        ).save(path, quality=92)
    storage = Storage.at(Path(folder) / "shards")
    storing = Storing(image_size=side, encoding="jpeg")
    write_dataset(
        dataset_source("image_folder"),
        storage,
        rows_per_shard=rows_per_shard,
        path=str(found),
        storing=storing,
    )
    return storage


def processor_seconds() -> float:
    """Return the processor time of this process and of its children, those that have ended too."""
    own = psutil.Process()
    times = [own.cpu_times()] + [child.cpu_times() for child in own.children(recursive=True)]
    return (
        sum(one.user + one.system for one in times)
        + times[0].children_user
        + times[0].children_system
    )


def timed(work: Callable[[], None], images: int) -> tuple[float, float]:
    """Run and return images per second of the clock and per second of processor time."""
    started, used = perf_counter(), processor_seconds()
    work()
    return images / (perf_counter() - started), images / (processor_seconds() - used)


def measure_streaming(size: Size, storage: Storage) -> tuple[float, dict[str, Any]]:
    """Stream whole epochs in threads and in worker processes; return images per core-second of
    one thread, and everything.
    """
    shards = Streamed(storage, "train", threads=1).shards
    plan = epoch_order(
        shards, groups=1, group_size=size.batch, window=4 * size.rows_per_shard, seed=0, epoch=0
    )

    def in_threads(count: int) -> None:
        for _ in Streamed(storage, "train", threads=count).batches(plan):
            pass

    def in_workers(count: int) -> None:
        for _ in DataLoader(
            InWorkers(storage, plan), batch_size=None, num_workers=count, prefetch_factor=2
        ):
            pass

    in_threads(1)
    cases = {
        f"{name}_{count}": (work, count)
        for count in (1, 2)
        for name, work in (("threads", in_threads), ("workers", in_workers))
    }
    rates = common.interleaved(
        {
            name: lambda work=work, count=count: timed(lambda: work(count), plan.numel())
            for name, (work, count) in cases.items()
        },  # type: ignore[misc]
        rounds=size.rounds,
        warm_up=0,
    )
    clock, core = (
        {name: median(one[part] for one in found) for name, found in rates.items()}
        for part in (0, 1)
    )  # type: ignore[index]
    details = {
        "streamed_images_per_second": clock,
        "streamed_images_per_core_second": core,
        "memory_mib_by_tenth": memory_by_tenth(storage, plan),
    }
    return core["threads_1"], details


def memory_by_tenth(storage: Storage, plan: Tensor) -> list[float]:
    """Return this process's memory in MiB after each tenth of a streamed epoch."""
    process, seen, every = psutil.Process(), list[float](), max(1, len(plan) // 10)
    for step, _ in enumerate(Streamed(storage, "train", threads=1).batches(plan), start=1):
        if step % every == 0:
            gc.collect()
            seen.append(round(process.memory_info().rss / 2**20, 1))
    return seen


def measure_waiting(size: Size, folder: str) -> tuple[float, dict[str, Any]]:
    """Train for some epochs on streamed JPEG images of 32 pixels and return the share of their
    time spent waiting for them.
    """
    images = size.batch * size.steps
    storage = write_pictures(folder, images, side=32, rows_per_shard=max(size.batch // 2, 8))
    train = WatchedLoader(Streamed(storage, "train", threads=1))
    window = size.batch  # so small that shards come and go
    settings = TrainingSettings(
        epochs=1000,
        global_batch_size=size.batch,
        batchnorm_group_size=size.batch,
        validate_every=1000,
        shuffle_window=window,
    )
    val = batch_of(digits_enlarged()["val"], 16)
    reports = fit(
        scaled_resnet18(width=size.width),
        train,
        val,
        settings=settings,
        threat_model=ThreatModel("linf", 8 / 255),
    )
    next(reports)
    shares, rates = [], []
    for _ in range(size.rounds):
        train.seconds.clear()
        rate = next(reports).metrics["throughput/images_per_second"]
        shares.append(sum(train.seconds) * rate / images)
        rates.append(rate)
    return median(shares), {
        "train_images_per_second": median(rates),
        "wait_share_of_rounds": shares,
    }


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__)
    about = common.machine()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        rate, resident = measure_delivery(size, f"{folder}/raw")
        pictures = write_pictures(
            f"{folder}/jpeg", size.pictures, side=size.side, rows_per_shard=size.rows_per_shard
        )
        streamed, streaming = measure_streaming(size, pictures)
        share, waiting = measure_waiting(size, f"{folder}/waiting")
    figures = {"images_per_second_per_core": streamed, "wait_share": share}
    details = {
        "size": asdict(size),
        "resident_images_per_second_per_core": rate,
        **resident,
        **streaming,
        **waiting,
    }
    common.finish(
        "loading: images to the training step", figures, details, about, path=options.json
    )


if __name__ == "__main__":
    main()
