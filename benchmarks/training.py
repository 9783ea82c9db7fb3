"""What one step of smooth adversarial training costs, measured in one run, in interleaved rounds.

    sat         the real step: `sat_ray.training.fit`, PGD-1, attacker's view, channels-last (seconds of its training loop, no validation)
    plain       the same batches, model, layout and optimizer without the attack
    attack      the attack pass alone: random start, one gradient at the input, projection
    textbook    attack by .backward(), plain layout, eager, the activation as composed operations
    floor       attack + plain, what a step cannot go below without another algorithm

Scaling: two processes joined by gloo on one core each, against one of them alone, the same images per worker.
--quick: width 32; else width 64.
"""

import json
import resource
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import common
import scaling
import torch
import torch.distributed as dist
from parts import batch_of, digits_at_32_pixels, scaled_resnet18
from steps import THREAT_MODEL, OperationCounter, Plain, Size, Textbook

from sat_ray.data.split import Split
from sat_ray.training import EpochReport, fit
from sat_ray.world import World

FULL = Size(width=64, images=64, steps=4, rounds=7)
QUICK = Size(width=32, images=64, steps=2, rounds=7)
SMOKE = Size(width=8, images=8, steps=1, rounds=1)


def reports_of(size: Size, train: Split, *, world: World | None = None) -> Iterator[EpochReport]:
    """Start the real training; each report is one sample."""
    world = world or World()
    settings = size.settings(workers=world.size)
    return fit(scaled_resnet18(width=size.width), train, train, settings=settings, threat_model=THREAT_MODEL, world=world)


def seconds_per_step(report: EpochReport, *, images: int) -> float:
    """Return the seconds of one step of `images` images; validation and copies of the state are not in it."""
    return images / report.metrics["throughput/images_per_second"]


def count_operations(size: Size, plain: Plain, textbook: Textbook, reports: Iterator[EpochReport]) -> dict[str, dict[str, float]]:
    """Count weight-gradient convolutions and operations per step; AssertionError if the attack computes any weight gradient."""
    works = {"attack": plain.craft, "plain": plain.step, "sat": lambda: next(reports), "textbook": textbook.step}
    weights: dict[str, float] = {}
    gigaflops: dict[str, float] = {}
    for name, work in works.items():
        with OperationCounter() as seen:
            work()
        weights[name] = seen.weight_gradients / size.steps
        gigaflops[name] = seen.flops / size.steps / 1e9
    assert weights["attack"] == 0, f"the attack computed {weights['attack']:g} weight gradients"
    assert weights["sat"] == weights["plain"], f"a step computed {weights['sat']:g} weight gradients, the update needs {weights['plain']:g}"
    return {"weight_gradient_convolutions_per_step": weights, "gigaflops_per_step": gigaflops}


def matrix_rate(*, side: int = 1024, repeats: int = 5) -> float:
    """Measure this process's float32 matrix product, in floating-point operations per second."""
    a, b = torch.rand(side, side), torch.rand(side, side)
    torch.mm(a, b)
    return 2 * side**3 / median(common.seconds_of(lambda: torch.mm(a, b)) for _ in range(repeats))


def measure_steps(size: Size, train: Split) -> tuple[dict[str, float], dict[str, Any]]:
    """Time the four kinds of step in interleaved rounds."""
    plain, textbook, reports = Plain(size, train), Textbook(size, train), reports_of(size, train)
    counts = count_operations(size, plain, textbook, reports)
    cases = {
        "sat": lambda: seconds_per_step(next(reports), images=size.images),
        "plain": plain.step,
        "attack": plain.craft,
        "textbook": textbook.step,
        "matrix_rate": lambda: matrix_rate(repeats=1),
    }
    seconds = common.interleaved(cases, rounds=size.rounds)
    rates = seconds.pop("matrix_rate")
    floor = [attack + step for attack, step in zip(seconds["attack"], seconds["plain"], strict=True)]
    figures = {
        "sat_over_plain": common.median_ratio(seconds["sat"], seconds["plain"]),
        "sat_over_floor": common.median_ratio(seconds["sat"], floor),
        "speedup_over_textbook": common.median_ratio(seconds["textbook"], seconds["sat"]),
        "images_per_second": size.images / median(seconds["sat"]),
    }
    operations = 1e9 * counts["gigaflops_per_step"]["sat"]
    gradients = 4.0 * sum(parameter.numel() for parameter in plain.model.parameters())
    step, plain_step = median(seconds["sat"]), median(seconds["plain"])
    details = {
        "modelled_scaling": {
            f"{workers} workers": scaling.efficiency(step, plain_step, gradients, workers=workers) for workers in scaling.WORKERS
        },
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "median_seconds_per_step": {name: median(values) for name, values in seconds.items()},
        **counts,
        "share_of_matrix_rate": median(operations / s / rate for s, rate in zip(seconds["sat"], rates, strict=True)),
        "seconds_per_step": seconds,
    }
    return figures, details


def _worker(rank: int, folder: str, size: Size) -> None:
    """Train alone (rank 0, the other waits) and together, in turn; rank 0 writes the images per second of both."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about an argument of DDP
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    world = World(rank=rank, size=2)
    train = batch_of(digits_at_32_pixels()["train"], 2 * size.images * size.steps)
    alone = reports_of(size, train.take(slice(0, size.images * size.steps)))
    together = reports_of(size, train, world=world)

    def sample(reports: Iterator[EpochReport], *, take_part: bool) -> float:
        rate = next(reports).metrics["throughput/images_per_second"] if take_part else 0.0
        world.barrier()
        return rate

    cases = {"one": lambda: sample(alone, take_part=rank == 0), "two": lambda: sample(together, take_part=True)}
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


def main() -> None:
    """Run the benchmark."""
    options = common.options(__doc__)
    about = common.machine()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    train = batch_of(digits_at_32_pixels()["train"], size.images * size.steps)
    figures, details = measure_steps(size, train)
    rates = measure_scaling(size)
    figures["scaling_2_workers"] = common.median_ratio(rates["two"], rates["one"])
    details |= {"size": asdict(size), "images_per_second_of_workers": rates}
    common.finish("training: one step of smooth adversarial training", figures, details, about, path=options.json)


if __name__ == "__main__":
    main()
