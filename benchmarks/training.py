r"""Measure one step of smooth adversarial training, in one run and in interleaved rounds.

    sat         the real step: `sat_ray.training.fit`, PGD-1, the attacker's view, channels-last
                (seconds of its training loop, without validation)
    plain       the same batches, model, layout and optimizer without the attack
    attack      the inner maximization alone: random start, one gradient at the input, projection
    textbook    attack by .backward(), plain layout, eager, the activation as composed operations
    floor       attack + plain: no step is faster without another algorithm
    compiled    the real step with training.compile, with --compile

Scaling: two processes, joined by gloo on one core each or by nccl on one GPU each, compared with
one of them alone, the same images per worker.
--quick: width 32; otherwise width 64. On a GPU:

    python benchmarks/training.py --device cuda --model resnet50 --size 224 --precision bf16 \
        --compile
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import common
import hardware
import scaling
import torch
import torch.distributed as dist
from hardware import Hardware, PeakMemory
from parts import batch_of
from steps import THREAT_MODEL, OperationCounter, Plain, Size, Textbook

from sat_ray.data.split import Split
from sat_ray.training.loop import EpochReport, RunOptions, fit
from sat_ray.training.parallel.process_group import ProcessGroup

FULL = Size(width=64, images=64, steps=4, rounds=7)
QUICK = Size(width=32, images=64, steps=2, rounds=7)
SMOKE = Size(width=8, images=8, steps=1, rounds=1)
GPU_IMAGES, GPU_STEPS = 256, 8  # of a step, and in one timed sample


def reports_of(
    size: Size, train: Split, *, process_group: ProcessGroup | None = None, compiled: bool = False
) -> Iterator[EpochReport]:
    """Start the real training; each report is one sample."""
    process_group = process_group or ProcessGroup()
    model = size.hardware.build(width=size.width)
    settings = size.settings(workers=process_group.size, compiled=compiled)
    return fit(
        model,
        train,
        train.take(slice(0, size.images)),
        settings=settings,
        threat_model=THREAT_MODEL,
        options=RunOptions(process_group=process_group),
    )


def seconds_per_step(report: EpochReport, *, images: int) -> float:
    """Return the seconds of one step of `images` images;
    validation and copies of the state are not in it.
    """
    return images / report.metrics["throughput/images_per_second"]


def count_operations(
    size: Size, plain: Plain, textbook: Textbook, reports: Iterator[EpochReport]
) -> dict[str, dict[str, float]]:
    """Count weight-gradient convolutions and operations per step; AssertionError if the attack
    computes any weight gradient.
    """
    next(reports)  # the first step also checks the folded network against the model
    works = {
        "attack": plain.attack_alone,
        "plain": plain.step,
        "sat": lambda: next(reports),
        "textbook": textbook.step,
    }
    weights: dict[str, float] = {}
    gigaflops: dict[str, float] = {}
    for name, work in works.items():
        with OperationCounter() as seen:
            work()
        weights[name] = seen.weight_gradients / size.steps
        gigaflops[name] = seen.flops / size.steps / 1e9
    assert weights["attack"] == 0, f"the attack computed {weights['attack']:g} weight gradients"
    assert weights["sat"] == weights["plain"], (
        f"a step computed {weights['sat']:g} weight gradients, the update needs "
        f"{weights['plain']:g}"
    )
    return {"weight_gradient_convolutions_per_step": weights, "gigaflops_per_step": gigaflops}


def measure_steps(
    size: Size, train: Split, *, compiled: bool = False
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Time the kinds of step in interleaved rounds."""
    on, memory = size.hardware, PeakMemory(size.hardware)
    plain, textbook, reports = Plain(size, train), Textbook(size, train), reports_of(size, train)
    counts = count_operations(size, plain, textbook, reports)
    cases = {
        "sat": lambda: seconds_per_step(next(reports), images=size.images),
        "plain": plain.step,
        "attack": plain.attack_alone,
        "textbook": textbook.step,
    }
    if on.precision == "bf16":
        cases["textbook_bf16"] = Textbook(size, train, bf16=True).step
    details: dict[str, Any] = {}
    if compiled:
        faster = reports_of(size, train, compiled=True)
        details["seconds_to_compile"] = common.seconds_of(lambda: next(faster))
        cases["compiled"] = lambda: seconds_per_step(next(faster), images=size.images)
    watched = {name: memory.watching(name, case) for name, case in cases.items()}
    seconds = common.interleaved({**watched, "matrix_rate": on.matrix_rate}, rounds=size.rounds)
    rates = seconds.pop("matrix_rate")
    floor = [
        attack + step for attack, step in zip(seconds["attack"], seconds["plain"], strict=True)
    ]
    figures: dict[str, float | None] = {
        "sat_over_plain": common.median_ratio(seconds["sat"], seconds["plain"]),
        "sat_over_floor": common.median_ratio(seconds["sat"], floor),
        "speedup_over_textbook": common.median_ratio(seconds["textbook"], seconds["sat"]),
        "images_per_second": size.images / median(seconds["sat"]),
    }
    operations = 1e9 * counts["gigaflops_per_step"]["sat"]
    gradients = 4.0 * sum(parameter.numel() for parameter in plain.model.parameters())
    step, plain_step = median(seconds["sat"]), median(seconds["plain"])
    details |= {
        "modelled_scaling": {
            f"{workers} workers": scaling.efficiency(step, plain_step, gradients, workers=workers)
            for workers in scaling.GPUS
        },
        "peak_memory_gib": memory.figures,
        "median_seconds_per_step": {name: median(values) for name, values in seconds.items()},
        **counts,
        "matrix_rate_teraflops": median(rates) / 1e12,
        "share_of_matrix_rate": {
            name: median(
                operations / s / rate for s, rate in zip(seconds[name], rates, strict=True)
            )
            for name in ("sat", "compiled")
            if name in seconds
        },
        "seconds_over_sat": {
            name: common.median_ratio(seconds[name], seconds["sat"])
            for name in ("textbook_bf16", "compiled")
            if name in seconds
        },
        "seconds_per_step": seconds,
    }
    return figures, details


def _worker(rank: int, folder: str, size: Size) -> None:
    """Train alone (rank 0, the other waits) and together, in turn;
    rank 0 writes the images per second of both.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about an argument of DDP
    group = ProcessGroup(rank=rank, size=2)
    if size.hardware.on_gpu:
        torch.cuda.set_device(rank)
        group = replace(group, device=f"cuda:{rank}")
        size = replace(size, hardware=replace(size.hardware, device=group.device))
    backend = "nccl" if size.hardware.on_gpu else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    train = batch_of(size.hardware.images()["train"], 2 * size.images * size.steps)
    alone = reports_of(size, train.take(slice(0, size.images * size.steps)))
    together = reports_of(size, train, process_group=group)

    def sample(reports: Iterator[EpochReport], *, take_part: bool) -> float:
        rate = next(reports).metrics["throughput/images_per_second"] if take_part else 0.0
        group.barrier()
        return rate

    cases = {
        "one": lambda: sample(alone, take_part=rank == 0),
        "two": lambda: sample(together, take_part=True),
    }
    rates = common.interleaved(cases, rounds=size.rounds)
    if rank == 0:
        Path(folder, "rates.json").write_text(json.dumps(rates))
    dist.destroy_process_group()


def measure_scaling(size: Size) -> dict[str, list[float]]:
    """Return images per second of one worker and of two, round by round."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_worker, args=(folder, size), nprocs=2)
        rates: dict[str, list[float]] = json.loads(Path(folder, "rates.json").read_text())
    return rates


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark alone has."""
    hardware.add_options(parser)
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help=f"images of a step; default 64, on a GPU {GPU_IMAGES}",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="time training.compile as well; it takes minutes to compile",
    )


def size_of(options: argparse.Namespace, on: Hardware) -> Size:
    """Return how much is measured."""
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    if on.on_gpu and not options.smoke:
        size = replace(size, images=GPU_IMAGES, steps=GPU_STEPS, rounds=3)
    return replace(size, hardware=on, images=options.batch or size.images)


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__, more=add_options)
    about, size = common.machine(), size_of(options, hardware.from_options(options))
    figures, details = measure_steps(
        size,
        batch_of(size.hardware.images()["train"], size.images * size.steps),
        compiled=options.compile,
    )
    figures["scaling_2_workers"] = None
    details["images_per_second_of_workers"] = "not measured: there is one GPU"
    if not size.hardware.on_gpu or torch.cuda.device_count() > 1:
        rates = measure_scaling(size)
        figures["scaling_2_workers"] = common.median_ratio(rates["two"], rates["one"])
        details["images_per_second_of_workers"] = rates
    details["size"] = asdict(size)
    common.finish(
        "training: one step of smooth adversarial training",
        figures,
        details,
        about,
        path=options.json,
    )


if __name__ == "__main__":
    main()
