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
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import common
import torch
import torch.distributed as dist
import torch.nn.functional as F
from parts import batch_of, digits_at_32_pixels, scaled_resnet18
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sat_ray.activations import Activation
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.losses import cross_entropy
from sat_ray.models import settle_layout, view
from sat_ray.randomness import Randomness
from sat_ray.threat import ThreatModel
from sat_ray.training import EpochReport, TrainingSettings, fit, parameter_groups
from sat_ray.world import World

THREAT_MODEL = ThreatModel("linf", 8 / 255)
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Size:
    """How much is measured. images: per worker and step; steps: in one timed sample."""

    width: int
    images: int
    steps: int
    rounds: int

    def settings(self, *, workers: int = 1) -> TrainingSettings:
        """Describe an endless training in which every worker has one BatchNorm group; nothing is validated while it is timed."""
        return TrainingSettings(
            epochs=1000,
            global_batch_size=self.images * workers,
            batchnorm_group_size=self.images,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup_epochs=0,
            validate_every=1000,
        )


FULL = Size(width=64, images=64, steps=4, rounds=7)
QUICK = Size(width=32, images=64, steps=2, rounds=7)
SMOKE = Size(width=8, images=8, steps=1, rounds=1)


class OperationCounter(TorchDispatchMode):
    """Count floating-point operations, and the convolutions whose backward pass computes the gradient of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_gradients = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.weight_gradients += bool(args[10][1])  # output_mask = (input, weight, bias)
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def reports_of(size: Size, train: Split, *, world: World | None = None) -> Iterator[EpochReport]:
    """Start the real training; each report is one sample."""
    world = world or World()
    settings = size.settings(workers=world.size)
    return fit(scaled_resnet18(width=size.width), train, train, settings=settings, threat_model=THREAT_MODEL, world=world)


def seconds_per_step(report: EpochReport, *, images: int) -> float:
    """Return the seconds of one step of `images` images; validation and copies of the state are not in it."""
    return images / report.metrics["throughput/images_per_second"]


class Plain:
    """A training step without an attack, and the attack alone, on the same batches, model and layout as `fit` uses."""

    def __init__(self, size: Size, train: Split) -> None:
        self.size, self.train = size, train
        model = scaled_resnet18(width=size.width)
        self.layout = settle_layout(model)
        self.model = model.train()
        self.attacker = view(model)
        self.attack = size.settings().attack(THREAT_MODEL)
        self.optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=5e-4), lr=LEARNING_RATE, momentum=0.9, nesterov=True)

    def batches(self) -> Iterator[Split]:
        """Yield the batches of one sample."""
        for rows in torch.randperm(len(self.train)).split(self.size.images):
            yield self.train.take(rows)

    def step(self) -> float:
        """Train on the clean batches of one sample; return seconds per step."""
        started = perf_counter()
        for batch in self.batches():
            x = to_pixels(batch.images).contiguous(memory_format=self.layout)
            self.optimizer.zero_grad(set_to_none=True)
            cross_entropy(self.model(x), batch.labels).mean().backward()
            self.optimizer.step()
        return (perf_counter() - started) / self.size.steps

    def craft(self) -> float:
        """Attack the batches of one sample; return seconds per step. The attack alone is timed."""
        seconds = 0.0
        for batch in self.batches():
            x = to_pixels(batch.images).contiguous(memory_format=self.layout)
            rng = Randomness(0, batch.image_ids)
            started = perf_counter()
            self.attack.run(self.attacker, x, batch.labels, rng)
            seconds += perf_counter() - started
        return seconds / self.size.steps


class ComposedSilu(nn.Module):
    """SiLU as one writes it from its formula."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return x * torch.sigmoid(x)


class Textbook:
    """Adversarial training as tutorials show it."""

    def __init__(self, size: Size, train: Split) -> None:
        self.size, self.train = size, train
        self.model = scaled_resnet18(width=size.width)
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Activation):
                    setattr(parent, name, ComposedSilu())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def craft(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one signed step from a random start."""
        epsilon = THREAT_MODEL.epsilon
        self.model.eval()
        x_adv = (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).clamp(0, 1).detach().requires_grad_()
        F.cross_entropy(self.model(x_adv), y).backward()
        assert x_adv.grad is not None
        moved = x_adv.detach() + epsilon * x_adv.grad.sign()
        self.model.train()
        return torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)

    def step(self) -> float:
        """Train on the batches of one sample; return seconds per step."""
        started = perf_counter()
        for rows in torch.randperm(len(self.train)).split(self.size.images):
            x, y = self.train.images[rows].float() / 255, self.train.labels[rows]
            x_adv = self.craft(x, y)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x_adv), y).backward()
            self.optimizer.step()
        return (perf_counter() - started) / self.size.steps


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
    details = {
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
