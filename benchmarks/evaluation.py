"""PGD-200 of torchattacks, foolbox, ART and sat_ray on one adversarially trained ResNet-18 and the same images of 32 pixels.

All start from the clean image. A library attacks the images in batches of at most 64 (on a GPU 256); what it returns is scored in float32.
sat_ray runs its real evaluation (every visited point counts, images retire, cycles are detected). The model is trained by sat_ray once and
cached.

--quick: width 32 and as many of 64 images as the five minutes allow; else width 64 and 64 images, an hour or two on 2 cores. On a GPU 4,096
images, the digits again and again, each time moved by some pixels, at the epsilon that about 42 % of them survive; the libraries, whose
time is the same for every image, get the first 768 of them:

    python benchmarks/evaluation.py --device cuda --model resnet50 --size 224 --precision bf16 --gradient fp16-compiled --no-float32
"""

import argparse
import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import mean, median
from time import perf_counter, process_time
from typing import Any

import common
import hardware
import pyarrow as pa
import safetensors.torch
import torch
from hardware import Hardware, PeakMemory
from libraries import LIBRARIES, Library
from parts import moved
from steps import OperationCounter
from torch import Tensor

from sat_ray.attacks import AttackSpec, pgd
from sat_ray.attacks.base import Model
from sat_ray.calibration import CONTROL_IMAGES, Calibration
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation import calibrate_attacks, evaluate, robust_image_ids
from sat_ray.fast_copy import fast_copy, pays
from sat_ray.losses import attack_loss
from sat_ray.models import Normalized, settle_layout
from sat_ray.precision import exact_float32
from sat_ray.threat import ThreatModel
from sat_ray.training import TrainingSettings, fit

QUICK_SECONDS = 270.0


@dataclass(frozen=True)
class Size:
    """How much is measured.

    epsilon: in 255ths; trained_epsilon: of the training, where it is another; epochs, learning_rate, train_images: of the adversarial
    training; rounds: of the interleaved timing; batch: images of one call of a library; library_images: how many of the images, the first
    ones, the libraries get, 0 for all (their time does not depend on the images); robust: share of the images that the epsilon of the
    attack is chosen for, 0 where it is given.
    """

    width: int
    images: int
    lanes: int
    steps: int = 200
    rounds: int = 1
    epsilon: int = 32
    trained_epsilon: int = 0
    epochs: int = 4
    learning_rate: float = 0.05
    train_images: int = 718
    batch: int = 64
    library_images: int = 0
    robust: float = 0.0
    hardware: Hardware = field(default_factory=Hardware)

    @property
    def common(self) -> int:
        """Return how many images everybody attacks, the first ones."""
        return min(self.images, self.library_images or self.images)

    @property
    def threat_model(self) -> ThreatModel:
        """Return the ball that all attacks use."""
        return ThreatModel("linf", self.epsilon / 255)

    @property
    def trained_in(self) -> ThreatModel:
        """Return the ball that training uses."""
        return ThreatModel("linf", (self.trained_epsilon or self.epsilon) / 255)

    @property
    def spec(self) -> AttackSpec:
        """Describe the attack that everybody runs."""
        step_size = max(self.epsilon / 255 / 10, self.epsilon / 255 / self.steps)
        return AttackSpec(threat_model=self.threat_model, steps=self.steps, step_size=step_size, random_start=False)


FULL = Size(width=64, images=64, lanes=16, rounds=3, epsilon=40)
QUICK = Size(width=32, images=64, lanes=16)
SMOKE = Size(width=8, images=16, lanes=4, steps=5, epsilon=2, epochs=3, train_images=320)
GPU = Size(
    width=64,
    images=4096,
    lanes=512,
    batch=256,
    library_images=768,
    trained_epsilon=16,
    epochs=20,
    learning_rate=0.1,
    robust=0.42,
)


def trained_model(size: Size, splits: dict[str, Split], *, cache: bool) -> Normalized:
    """Train the model with sat_ray's own `fit`, or read the weights that an earlier run cached."""
    about = {name: value for name, value in asdict(size).items() if name in ("width", "epochs", "learning_rate", "train_images")}
    about["epsilon"] = size.trained_in.epsilon
    if (on := size.hardware) != Hardware():
        about |= {"model": on.model, "pixels": on.pixels, "precision": on.precision}
    path = common.CACHE / f"evaluation-{hashlib.sha256(repr(about).encode()).hexdigest()[:12]}.safetensors"
    model = on.build(width=size.width)
    if cache and path.exists():
        model.load_state_dict(safetensors.torch.load_file(path))
        return model.eval()
    settings = TrainingSettings(
        epochs=size.epochs,
        global_batch_size=32,
        batchnorm_group_size=32,
        learning_rate=size.learning_rate,
        warmup_epochs=1,
        validate_every=size.epochs,
        precision=on.precision,
    )
    train, val = splits["train"].take(slice(0, size.train_images)), splits["val"].take(slice(0, 32))
    for report in fit(model, train, val, settings=settings, threat_model=size.trained_in):
        print(f"training epoch {report.epoch + 1}/{size.epochs}: {report.metrics}", flush=True)
    if cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model.to(memory_format=torch.contiguous_format).eval()


def one_pass(model: Model, x: Tensor, y: Tensor) -> None:
    """Compute a forward pass with the gradient at the input."""
    point = x.clone().requires_grad_()
    torch.autograd.grad(attack_loss(model(point), y).sum(), point)


@exact_float32()
def pass_seconds(model: Model, x: Tensor, y: Tensor, *, on: Hardware, repeats: int = 5) -> list[float]:
    """Time forward passes with the gradient at the input."""
    one_pass(model, x, y)
    return [on.seconds_of(lambda: one_pass(model, x, y)) for _ in range(repeats)]


def pass_operations(model: Normalized, x: Tensor, y: Tensor) -> float:
    """Return the floating-point operations of such a pass, of one image."""
    with OperationCounter() as seen:
        one_pass(model, x[:1], y[:1])
    return float(seen.flops)


def affordable(size: Size, seconds_per_image: float, *, seconds_left: float) -> Size:
    """Take as many of the images as fit into the time."""
    passes = 6 * size.steps * seconds_per_image  # three libraries with weight gradients or more; ours thrice at a third, and calibrated
    count = next((n for n in (64, 48, 40, 32, 24, 16) if n <= size.images and n * passes < seconds_left), 16)
    return with_images(size, count)


def with_images(size: Size, count: int) -> Size:
    """Change the number of images; with few of them, few lanes waste less at the end, when there is nothing left to fill them."""
    return replace(size, images=count, lanes=size.lanes if count >= 32 else 8)


def attack_in_batches(library: Library, x: Tensor, y: Tensor, *, batch: int) -> Tensor:
    """Let a library attack all images."""
    return torch.cat([library(part, labels) for part, labels in zip(x.split(batch), y.split(batch), strict=True)])


def fitting_epsilon(model: Normalized, images: Split, size: Size, *, images_asked: int = 256) -> int:
    """Return the epsilon, in 255ths, at which PGD-20 on a copy in bf16 leaves about `size.robust` of some images right."""
    sample, on = images.take(slice(0, images_asked)), size.hardware
    x, y = to_pixels(sample.images.to(on.place)), sample.labels.to(on.place)
    copied, low, high = fast_copy(model, gradient="bf16", device=on.place), 0, 128
    while high - low > 1:
        epsilon = (low + high) // 2
        ball = ThreatModel("linf", epsilon / 255)
        x_adv = pgd(copied, x, y, threat_model=ball, step_size=ball.epsilon / 8, steps=20, random_start=False)
        enough = robust_share(model, x_adv, x, y, threat_model=ball, batch=size.batch) >= size.robust
        low, high = (epsilon, high) if enough else (low, epsilon)
    return max(low, 1)


@torch.no_grad()
def robust_share(model: Normalized, x_adv: Tensor, x: Tensor, y: Tensor, *, threat_model: ThreatModel, batch: int) -> float:
    """Score returned points in float32; a point outside the threat model is an error of the library, and raises."""
    assert bool(threat_model.contains(x_adv, x).all()), "a library returned an infeasible point"
    correct = [model(part).argmax(dim=1) == labels for part, labels in zip(x_adv.split(batch), y.split(batch), strict=True)]
    return float(torch.cat(correct).float().mean())


class Contest:
    """The contestants on the same images; ours runs before and after every round of the libraries."""

    def __init__(
        self, model: Normalized, images: Split, size: Size, *, gradient: str, libraries: Sequence[str], float32: bool = True
    ) -> None:
        self.model, self.images, self.size, self.gradient, self.float32 = model, images, size, gradient, float32
        self.ours = copy.deepcopy(model)
        settle_layout(self.ours)
        self.on, self.memory = size.hardware, PeakMemory(size.hardware)
        first = images.take(slice(0, size.common))
        self.x, self.y = to_pixels(first.images.to(self.on.place)), first.labels.to(self.on.place)
        shape = tuple(images.images.shape[1:])
        self.libraries = {name: LIBRARIES[name](copy.deepcopy(model), size.spec, shape) for name in libraries}
        self.robust: dict[str, float] = {}
        self.fast_robust = float("nan")
        self.calibrating: list[float] = []
        self.calibration = ""
        self.cpu_seconds: dict[str, list[float]] = {}
        self.outcomes: pa.Table | None = None
        self.fast_outcomes: pa.Table | None = None

    def timed(self, name: str, work: Callable[[], object]) -> float:
        """Return the wall seconds of some work, and keep its processor seconds: on a shared machine they tell more, with one thread."""
        before = process_time()
        seconds = self.memory.watching(name, lambda: self.on.seconds_of(work))()
        self.cpu_seconds.setdefault(name, []).append(process_time() - before)
        return seconds

    def run_ours(self) -> float:
        """Run the real evaluation and return its seconds."""

        def work() -> None:
            split, size = self.images, self.size
            self.outcomes = evaluate(self.ours, split.images, split.labels, split.image_ids, attacks=[size.spec], lanes=size.lanes)

        seconds = self.timed("ours", work)
        self.robust["ours"] = self.robust_in(self.outcomes)
        return seconds

    def robust_in(self, outcomes: pa.Table) -> float:
        """Return the robust accuracy on the images that everybody attacks."""
        return len(robust_image_ids(outcomes) & set(self.images.image_ids[: self.size.common].tolist())) / self.size.common

    def run_ours_fast(self) -> float:
        """Run the real evaluation with gradients of a fast copy and float32 verdicts and return its seconds.

        The calibration, once per model and process whatever the number of images, is timed apart.
        """
        split, size = self.images, self.size
        settings: dict[str, Any] = {"attacks": [replace(size.spec, gradient=self.gradient, name="")], "lanes": size.lanes}
        control, calibrations = split.take(slice(0, CONTROL_IMAGES)), dict[str, Calibration]()
        self.calibrating.append(self.timed("calibration", lambda: calibrations.update(calibrate_attacks(self.ours, control, **settings))))

        self.calibration = ", ".join(map(str, calibrations.values()))

        def work() -> None:
            self.fast_outcomes = evaluate(self.ours, split.images, split.labels, split.image_ids, calibrations=calibrations, **settings)

        seconds = self.timed("ours_fast", work)
        assert self.fast_outcomes is not None
        self.fast_robust = self.robust_in(self.fast_outcomes)
        print(f"ours with {self.gradient}: {seconds:.1f} s, {100 * self.fast_robust:.1f} % robust; {self.calibration}", flush=True)
        return seconds

    def run_library(self, name: str) -> float:
        """Run one library and return its seconds; the scoring is not timed."""
        returned: list[Tensor] = []
        library, batch = self.libraries[name], self.size.batch
        seconds = self.timed(name, lambda: returned.append(attack_in_batches(library, self.x.clone(), self.y, batch=batch)))
        self.robust[name] = robust_share(self.model, returned[0], self.x, self.y, threat_model=self.size.threat_model, batch=batch)
        print(f"{name}: {seconds:.1f} s, {100 * self.robust[name]:.1f} % robust", flush=True)
        return seconds

    def speedup(self, seconds: dict[str, list[float]], ours: str) -> dict[str, float]:
        """Return by library how many times as fast, image for image, one of our runs is."""
        more = self.size.images / self.size.common
        return {name: more * common.median_ratio(seconds[name], seconds[ours]) for name in self.libraries}

    def rounds(self) -> dict[str, list[float]]:
        """Time everybody; ours is the mean of the runs on either side of the libraries, or without float32 the one on the fast copy."""
        cases: dict[str, Callable[[], float]] = {name: partial(self.run_library, name) for name in self.libraries}
        if self.gradient:
            cases["ours_fast"] = self.run_ours_fast
        if not self.float32:
            seconds = common.interleaved(cases, rounds=self.size.rounds, warm_up=0)
            self.outcomes, self.robust["ours"] = self.fast_outcomes, self.fast_robust
            self.cpu_seconds["ours"] = self.cpu_seconds["ours_fast"]
            return {"ours": seconds["ours_fast"], **seconds}
        seconds = common.interleaved({"before": self.run_ours, **cases, "after": self.run_ours}, rounds=self.size.rounds, warm_up=0)
        sides = zip(seconds.pop("before"), seconds.pop("after"), strict=True)
        return {"ours": [mean(pair) for pair in sides], **seconds}


def figures_of(contest: Contest, seconds: dict[str, list[float]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Turn times and outcomes into the contract's figures and what stands behind them."""
    size, table = contest.size, contest.outcomes
    assert table is not None
    passes = sum(table["passes"].to_pylist())
    survivor_passes = sum(table.filter(table["robust"])["passes"].to_pylist())
    rows, on = torch.arange(size.lanes) % len(contest.y), contest.on
    climbed = contest.ours if contest.float32 else fast_copy(contest.ours, gradient=contest.gradient, device=on.place)
    seconds_of_a_pass = median(pass_seconds(climbed, contest.x[rows], contest.y[rows], on=on))
    operations = pass_operations(contest.ours, contest.x, contest.y)
    precision = "float32" if contest.float32 else contest.gradient.removesuffix("-compiled")
    figures = {
        "speedup": contest.speedup(seconds, "ours"),
        "robust_accuracy": contest.robust,
        "passes_per_image": passes / size.images,
        "floor_share": survivor_passes / size.lanes * seconds_of_a_pass / median(seconds["ours"]),
    }
    tolerance = max(0.005, 2 / size.common)
    lowest = min(share for name, share in contest.robust.items() if name != "ours")
    details = {
        "size": asdict(size),
        "attack": str(size.spec),
        "seconds": seconds,
        "speedup_in_cpu_seconds": {
            name: size.images / size.common * median(contest.cpu_seconds[name]) / mean(contest.cpu_seconds["ours"])
            for name in contest.libraries
        },
        "robust_of_all_images": len(robust_image_ids(table)) / size.images,
        "threads": torch.get_num_threads(),
        "milliseconds_of_a_pass": {"ours, per image": 1000 * seconds_of_a_pass / size.lanes},
        "peak_memory_gib": contest.memory.figures,
        "share_of_matrix_rate": {
            "ours": operations * passes / median(seconds["ours"]) / on.matrix_rate(precision=precision),
            "a pass at full lanes": operations * size.lanes / seconds_of_a_pass / on.matrix_rate(precision=precision),
        },
        "survivor_passes": survivor_passes,
        "at_most_the_lowest": contest.robust["ours"] <= lowest + tolerance,
        "fast": "not measured: not asked for, and this processor has neither AVX512-BF16 nor AMX",
    }
    if contest.gradient:
        details["fast"] = _fast_figures(contest, seconds, operations)
        if contest.float32 and pays(on.place):  # then it is what a user would choose
            details["float32"] = {"speedup": figures["speedup"], "robust_accuracy": contest.robust["ours"]}
            figures["speedup"] = details["fast"]["speedup"]
            figures["robust_accuracy"] = contest.robust | {"ours": contest.fast_robust}
            details["at_most_the_lowest"] = contest.fast_robust <= lowest + tolerance
    return figures, details


def _fast_figures(contest: Contest, seconds: dict[str, list[float]], operations: float) -> dict[str, Any]:
    """Return what gradients of a fast copy make of it. minutes_for_50000: of images as robust as these, with calibration."""
    precision = contest.gradient.removesuffix("-compiled")
    assert contest.fast_outcomes is not None
    taken, calibrating, passes = median(seconds["ours_fast"]), median(contest.calibrating), sum(contest.fast_outcomes["passes"].to_pylist())
    return {
        "speedup": contest.speedup(seconds, "ours_fast"),
        "robust_accuracy": contest.fast_robust,
        "gradient": contest.gradient,
        "share_of_matrix_rate": operations * passes / taken / contest.on.matrix_rate(precision=precision),
        "passes_per_image": passes / contest.size.images,
        "calibration": contest.calibration,
        "calibration_seconds": calibrating,
        "minutes_for_50000": (taken / contest.size.images * 50_000 + calibrating) / 60,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone can be asked for."""
    hardware.add_options(parser)
    names = list(LIBRARIES)
    parser.add_argument("--libraries", nargs="+", choices=names, default=names, help="whom to compare with; default: all three")
    parser.add_argument("--no-float32", action="store_true", help="leave out our run in float32, which without TF32 takes long on a GPU")


def main() -> None:
    """Run the benchmark."""
    started = perf_counter()
    options = common.options(__doc__, images=True, gradient=True, more=add_options)
    about, on = common.machine(), hardware.from_options(options)
    size = replace(SMOKE if options.smoke else QUICK if options.quick else GPU if on.on_gpu else FULL, hardware=on)
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
        raise SystemExit("--no-float32 leaves nothing of ours to time; allowed: with --gradient")
    images = moved(splits["test"], size.images)
    if size.robust:
        size = replace(size, epsilon=fitting_epsilon(model, images, size))
    print(f"{size.images} images, {size.spec}, lanes {size.lanes}", flush=True)
    contest = Contest(model, images, size, gradient=gradient, libraries=options.libraries, float32=not options.no_float32)
    figures, details = figures_of(contest, contest.rounds())
    details["wall_seconds"] = perf_counter() - started
    common.finish("evaluation: PGD of four libraries", figures, details, about, path=options.json)


if __name__ == "__main__":
    main()
