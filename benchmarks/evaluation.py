r"""Compare PGD-200 of torchattacks, foolbox, ART and sat_ray on one adversarially trained network.

All start from the clean image, on the same images of 32 pixels. A library attacks the images in
batches of at most 64 (on a GPU 256), and what it returns is scored in float32. sat_ray runs its
real evaluation: every visited point counts, broken images leave their slot, and cycles are
detected. sat_ray trains the model, a ResNet-18, once and caches it.

--quick: width 32 and as many of 64 images as fit into five minutes. Otherwise width 64 and 64
images, which takes an hour or two on 2 cores. On a GPU: 4,096 images, which are the digits
repeated, each repetition moved by some pixels, at the epsilon that about 42 % of them survive. The
libraries get the first 768 of them, because their time is the same for every image:

    python benchmarks/evaluation.py --device cuda --model resnet50 --size 224 --precision bf16 \
        --gradient fp16 --no-float32
"""

import argparse
from dataclasses import asdict, replace
from statistics import mean, median
from time import perf_counter
from typing import Any

import common
import hardware
import torch
from attacked import (
    FULL,
    GPU,
    QUICK,
    SMOKE,
    affordable,
    fitting_epsilon,
    trained_model,
    with_images,
)
from contest import Contest
from hardware import Hardware
from libraries import LIBRARIES
from parts import moved
from steps import OperationCounter
from torch import Tensor

from sat_ray.attacks.base import Model
from sat_ray.attacks.losses import attack_loss
from sat_ray.data.pixels import to_pixels
from sat_ray.evaluation.low_precision.surrogate import make_surrogate, pays
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.models import Normalized
from sat_ray.utils.precision import exact_float32

QUICK_SECONDS = 270.0


def one_pass(model: Model, x: Tensor, y: Tensor) -> None:
    """Compute a forward pass with the gradient at the input."""
    point = x.clone().requires_grad_()
    torch.autograd.grad(attack_loss(model(point), y).sum(), point)


@exact_float32()
def pass_seconds(model: Model, x: Tensor, y: Tensor, *, on: Hardware) -> list[float]:
    """Time five forward passes with the gradient at the input."""
    one_pass(model, x, y)
    return [on.seconds_of(lambda: one_pass(model, x, y)) for _ in range(5)]


def pass_operations(model: Normalized, x: Tensor, y: Tensor) -> float:
    """Return the floating-point operations of such a pass, of one image."""
    with OperationCounter() as seen:
        one_pass(model, x[:1], y[:1])
    return float(seen.flops)


def figures_of(
    contest: Contest, seconds: dict[str, list[float]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of the contract and their details from times and outcomes."""
    size, table = contest.size, contest.outcomes
    assert table is not None
    passes = sum(table["passes"].to_pylist())
    survivor_passes = sum(table.filter(table["robust"])["passes"].to_pylist())
    rows, on = torch.arange(size.slots) % len(contest.y), contest.on
    climbed = (
        contest.ours
        if contest.float32
        else make_surrogate(contest.ours, gradient=contest.gradient, device=on.place)
    )
    seconds_of_a_pass = median(pass_seconds(climbed, contest.x[rows], contest.y[rows], on=on))
    operations = pass_operations(contest.ours, contest.x, contest.y)
    precision = "float32" if contest.float32 else contest.gradient
    figures = {
        "speedup": contest.speedup(seconds, "ours"),
        "robust_accuracy": contest.robust,
        "passes_per_image": passes / size.images,
        "floor_share": survivor_passes / size.slots * seconds_of_a_pass / median(seconds["ours"]),
    }
    tolerance = max(0.005, 2 / size.compared)
    lowest = min(share for name, share in contest.robust.items() if name != "ours")
    details = {
        "size": asdict(size),
        "attack": str(size.spec),
        "seconds": seconds,
        "speedup_in_cpu_seconds": {
            name: size.excess
            * median(contest.cpu_seconds[name])
            / mean(contest.cpu_seconds["ours"])
            for name in contest.libraries
        },
        "robust_of_all_images": len(robust_image_ids(table)) / size.images,
        "threads": torch.get_num_threads(),
        "milliseconds_of_a_pass": {"ours, per image": 1000 * seconds_of_a_pass / size.slots},
        "peak_memory_gib": contest.memory.figures,
        "share_of_matrix_rate": {
            "ours": operations
            * passes
            / median(seconds["ours"])
            / on.matrix_rate(precision=precision),
            "a pass at full slots": operations
            * size.slots
            / seconds_of_a_pass
            / on.matrix_rate(precision=precision),
        },
        "survivor_passes": survivor_passes,
        "at_most_the_lowest": contest.robust["ours"] <= lowest + tolerance,
        "fast": "not measured: no --gradient, and this processor has neither AVX512-BF16 nor AMX",
    }
    if contest.gradient:
        details["fast"] = _fast_figures(contest, seconds, operations)
        if contest.float32 and pays(on.place):  # then a user would choose it
            details["float32"] = {
                "speedup": figures["speedup"],
                "robust_accuracy": contest.robust["ours"],
            }
            figures["speedup"] = details["fast"]["speedup"]
            figures["robust_accuracy"] = contest.robust | {"ours": contest.fast_robust}
            details["at_most_the_lowest"] = contest.fast_robust <= lowest + tolerance
    return figures, details


def _fast_figures(
    contest: Contest, seconds: dict[str, list[float]], operations: float
) -> dict[str, Any]:
    """Return the figures with low-precision gradients.

    minutes_for_50000: for images as robust as these, calibration included.
    """
    precision = contest.gradient
    assert contest.fast_outcomes is not None
    taken = median(seconds["ours_fast"])
    calibrating = median(contest.calibrating)
    passes = sum(contest.fast_outcomes["passes"].to_pylist())
    return {
        "speedup": contest.speedup(seconds, "ours_fast"),
        "robust_accuracy": contest.fast_robust,
        "gradient": contest.gradient,
        "share_of_matrix_rate": operations
        * passes
        / taken
        / contest.on.matrix_rate(precision=precision),
        "passes_per_image": passes / contest.size.images,
        "calibration": contest.calibration,
        "calibration_seconds": calibrating,
        "minutes_for_50000": (taken / contest.size.images * 50_000 + calibrating) / 60,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark alone has."""
    hardware.add_options(parser)
    names = list(LIBRARIES)
    parser.add_argument(
        "--libraries",
        nargs="+",
        choices=names,
        default=names,
        help="libraries to compare with; default: all three",
    )
    parser.add_argument(
        "--no-float32",
        action="store_true",
        help="leave out our run in float32, which without TF32 takes long on a GPU",
    )


def main() -> None:
    """Run the benchmark."""
    started = perf_counter()
    options = common.options(__doc__, images=True, gradient=True, more=add_options)
    about, on = common.machine(), hardware.from_options(options)
    size = replace(
        SMOKE if options.smoke else QUICK if options.quick else GPU if on.on_gpu else FULL,
        hardware=on,
    )
    splits = on.images()
    model = trained_model(size, splits, cache=not options.smoke)
    if options.images:
        size = with_images(size, options.images)
    elif options.quick and not options.smoke:
        sample = splits["test"].take(slice(0, 16))
        x, y = to_pixels(sample.images.to(on.place)), sample.labels.to(on.place)
        per_image = min(pass_seconds(model, x, y, on=on)) / len(sample)
        size = affordable(size, per_image, seconds_left=QUICK_SECONDS - (perf_counter() - started))
    gradient = options.gradient or ("bf16" if on.precision == "bf16" or pays(on.place) else "")
    if options.no_float32 and not gradient:
        raise SystemExit("--no-float32 needs --gradient: without it no run of ours is timed")
    images = moved(splits["test"], size.images)
    if size.robust:
        size = replace(size, epsilon=fitting_epsilon(model, images, size))
    print(f"{size.images} images, {size.spec}, slots {size.slots}", flush=True)
    contest = Contest(
        model,
        images,
        size,
        gradient=gradient,
        libraries=options.libraries,
        float32=not options.no_float32,
    )
    figures, details = figures_of(contest, contest.rounds())
    details["wall_seconds"] = perf_counter() - started
    common.finish("evaluation: PGD of four libraries", figures, details, about, path=options.json)


if __name__ == "__main__":
    main()
