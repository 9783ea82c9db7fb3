r"""Compare our cascade with AutoAttack (Croce & Hein 2020): seconds, and the images that survive.

Both attack one network on the same images. AutoAttack is put together from torchattacks' APGD,
targeted APGD, targeted FAB and Square at the published budgets (100 steps, 9 targets, 5,000
queries), because torchattacks' own AutoAttack class takes 10 steps. Its parts get up to 100 images
in a call. Each part of ours runs beside the same part of AutoAttack, and each takes the survivors
of its own parts before, so that a slow minute of the machine affects both.

  python benchmarks/agreement.py                      100 images per norm, half an hour on one core
  python benchmarks/agreement.py --images 899         all of the test split
  python benchmarks/agreement.py --network resnet18   the network of evaluation.py (--quick: its
                                                      small one), L-infinity alone
  python benchmarks/agreement.py --model resnet50 --size 224 --device cuda
                                                      the same with another network, on a GPU
  python benchmarks/agreement.py --checkpoint FOLDER  a network of 8 x 8 digits, L-infinity alone

The first network sees digits enlarged to 32 pixels: published code of Square never puts a square on
the last row or column of an image, while ours does, as the paper's algorithm says. At 8 pixels that
makes ours far stronger.

The strong number of a sweep (PGD-200, then APGD and targeted APGD of 20 steps towards 4 classes on
what survives, as in the recipe digits) runs first, on all images.

Figures: robust_accuracy (ours and autoattack, per norm), difference_in_points (ours minus
autoattack; above 0 means that ours is weaker) and speedup (autoattack's seconds / ours over the
parts that both have). details.strong: the same for the strong number; its speedup is over all parts
of autoattack.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import common
import hardware
import torch
import torchattacks
from attacked import FULL as LARGE
from attacked import GPU as LARGE_ON_GPU
from attacked import QUICK as LARGE_QUICK
from attacked import SMOKE as LARGE_SMOKE
from attacked import fitting_epsilon
from attacked import trained_model as evaluated_model
from parts import digits
from torch import Tensor

from sat_ray.attacks import AttackSpec, cascade
from sat_ray.attacks.cascade import strong_attacks
from sat_ray.checkpoint import load_model
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import fit
from sat_ray.training.settings import TrainingSettings

BATCH, CLASSES = 100, 10
LINF, L2 = ThreatModel("linf", 24 / 255), ThreatModel("l2", 3.0)


@dataclass(frozen=True)
class Size:
    """How much is trained and attacked;
    fewer steps and queries than AutoAttack's are for the tests alone.
    """

    images: int = 100
    epochs: int = 12
    steps: int = 100
    queries: int = 5000
    fab: bool = True
    balls: tuple[ThreatModel, ...] = (LINF, L2)


FULL = Size()
QUICK = Size(images=20)
SMOKE = Size(images=16, epochs=2, steps=5, queries=20, balls=(LINF,))


def trained_model(splits: dict[str, Split], *, epochs: int) -> Normalized:
    """Train a small network with PGD-1 at the L-infinity ball."""
    model = build_model(
        "small_resnet",
        activation="silu",
        num_classes=CLASSES,
        in_channels=3,
        width=12,
        mean=(0.3,) * 3,
        std=(0.35,) * 3,
        seed=0,
    )
    settings = TrainingSettings(
        epochs=epochs,
        global_batch_size=32,
        batchnorm_group_size=32,
        learning_rate=0.1,
        warmup_epochs=1,
        validate_every=epochs,
    )
    for report in fit(
        model,
        splits["train"],
        splits["val"].take(slice(0, 32)),
        settings=settings,
        threat_model=LINF,
    ):
        print(f"training epoch {report.epoch + 1}/{epochs}", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()


def survivors(model: Normalized, images: Split, *attacks: AttackSpec) -> Split:
    """Return the images that survive our attacks, each on what those before it leave."""
    arrays = (images.images, images.labels, images.image_ids)
    outcomes = evaluate(model, *arrays, attacks=attacks, cascade=True)
    return images.with_ids(robust_image_ids(outcomes))


def strong_number(ball: ThreatModel, size: Size) -> list[AttackSpec]:
    """Return the attacks behind the strong number of a sweep."""
    pgd = AttackSpec(
        threat_model=ball, steps=2 * size.steps, step_size=ball.epsilon / min(12, size.steps)
    )
    steps = min(20, size.steps)
    return [pgd, *strong_attacks(ball, num_classes=CLASSES, steps=steps, targets=4)]


def official_attacks(
    model: Normalized, ball: ThreatModel, size: Size
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the parts of AutoAttack in its order, by name."""
    shared: dict[str, Any] = {
        "eps": ball.epsilon,
        "norm": {"linf": "Linf", "l2": "L2"}[ball.norm],
        "seed": 0,
        "n_restarts": 1,
    }
    targeted = {"steps": size.steps, "n_classes": CLASSES}
    attacks = {
        "apgd": torchattacks.APGD(model, steps=size.steps, loss="ce", **shared),
        "apgd-t": torchattacks.APGDT(model, **targeted, **shared),
    }
    if size.fab:
        attacks["fab"] = torchattacks.FAB(model, multi_targeted=True, **targeted, **shared)
    if size.queries:
        attacks["square"] = torchattacks.Square(model, n_queries=size.queries, **shared)
    return attacks


def our_attacks(ball: ThreatModel, size: Size) -> dict[str, AttackSpec]:
    """Return the parts of our cascade by the names of AutoAttack's."""
    attacks = cascade(ball, num_classes=CLASSES, steps=size.steps, queries=size.queries or 1)
    named = {spec.algorithm + ("-t" if spec.targets else ""): spec for spec in attacks}
    return {name: spec for name, spec in named.items() if size.queries or name != "square"}


def official_survivors(
    model: Normalized, images: Split, attack: Callable[[Tensor, Tensor], Tensor], ball: ThreatModel
) -> Split:
    """Return the images that survive one part of AutoAttack."""
    kept = []
    for first in range(0, len(images), BATCH):
        part = images.take(slice(first, first + BATCH))
        x, y = _on_device(model, part)
        x_adv = attack(x, y)
        assert bool(ball.contains(x_adv, x).all()), (
            f"{type(attack).__name__} returned an infeasible point"
        )
        kept.append(_right(model, x_adv, y))
    return images.take(torch.cat(kept).nonzero().flatten()) if kept else images


def autoattack(model: Normalized, images: Split, ball: ThreatModel, size: Size) -> set[int]:
    """Return the ids of the images that survive AutoAttack;
    each attack takes the survivors of those before it.
    """
    alive = clean_correct(model, images)
    for attack in official_attacks(model, ball, size).values():
        alive = official_survivors(model, alive, attack, ball)
    return set(alive.image_ids.tolist())


def clean_correct(model: Normalized, images: Split) -> Split:
    """Return the images that the model classifies correctly."""
    right = _right(model, *_on_device(model, images))
    return images.take(right.nonzero().flatten())


class Comparison:
    """Run both sides part by part, and keep their survivors and seconds."""

    def __init__(self, model: Normalized, images: Split, ball: ThreatModel, size: Size) -> None:
        self.model = model
        self.ball = ball
        self.ours = our_attacks(ball, size)
        self.official = official_attacks(model, ball, size)
        self.strong = strong_number(ball, size)
        self.alive = {
            "strong": images,
            "ours": images,
            "autoattack": clean_correct(model, images),
        }
        self.seconds: dict[str, dict[str, float]] = {side: {} for side in self.alive}
        self.load: dict[str, float] = {}

    def run(self) -> None:
        """Run every part of ours before the same part of AutoAttack, in AutoAttack's order."""
        self._timed(
            "strong", "pgd and apgd", lambda every: survivors(self.model, every, *self.strong)
        )
        for name, attack in self.official.items():
            if name in self.ours:
                self._timed("ours", name, lambda left, n=name: self._survive_ours(left, n))
            official = attack
            self._timed(
                "autoattack",
                name,
                lambda left, a=official: official_survivors(self.model, left, a, self.ball),
            )
            self.load[name] = round(os.getloadavg()[0], 2)

    def speedup(self) -> float:
        """Return AutoAttack's seconds / ours, over the parts that both have."""
        shared = self.seconds["ours"].keys()
        official = sum(self.seconds["autoattack"][name] for name in shared)
        return official / sum(self.seconds["ours"].values())

    def strong_speedup(self) -> float:
        """Return AutoAttack's seconds / those of the strong number."""
        official = sum(self.seconds["autoattack"].values())
        return official / sum(self.seconds["strong"].values())

    def ids(self, side: str) -> set[int]:
        """Return the images that survived one side."""
        return set(self.alive[side].image_ids.tolist())

    def _survive_ours(self, left: Split, name: str) -> Split:
        return survivors(self.model, left, self.ours[name])

    def _timed(self, side: str, name: str, work: Callable[[Split], Split]) -> None:
        started = perf_counter()
        self.alive[side] = work(self.alive[side])
        self.seconds[side][name] = perf_counter() - started
        print(
            f"{side}, {name}: {self.seconds[side][name]:.1f} s, {len(self.alive[side])} left, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


@torch.no_grad()
def _right(model: Normalized, x: Tensor, y: Tensor) -> Tensor:
    return (model(x).argmax(dim=1) == y).cpu()


def _on_device(model: Normalized, images: Split) -> tuple[Tensor, Tensor]:
    """Return pixels and labels where the model is."""
    place = next(model.parameters()).device
    return to_pixels(images.images.to(place)), images.labels.to(place)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that this benchmark alone has."""
    hardware.add_options(parser)
    parser.add_argument("--network", choices=("small", "resnet18"), default="small")
    parser.add_argument("--checkpoint", metavar="FOLDER", help="a network of 8 x 8 digits")
    parser.add_argument(
        "--epsilon", type=int, metavar="K", help="attack within K/255 in L-infinity alone"
    )


def subject(options: argparse.Namespace, size: Size) -> tuple[Normalized, Split, Size]:
    """Return the network, the images and the balls that the options choose."""
    if options.checkpoint:
        images = digits()["test"].take(slice(0, size.images))
        return load_model(options.checkpoint), images, replace(size, balls=(LINF,))
    on = hardware.from_options(options)
    splits = on.images()
    images = splits["test"].take(slice(0, size.images))
    if options.network == "small" and not options.model:
        return trained_model(splits, epochs=size.epochs).to(on.place), images, size
    toy = LARGE_SMOKE if options.smoke else LARGE_QUICK
    full = LARGE_ON_GPU if on.on_gpu else LARGE
    large = replace(toy if options.smoke or options.quick else full, hardware=on)
    model = evaluated_model(large, splits, cache=not options.smoke)
    if large.robust:
        large = replace(large, epsilon=fitting_epsilon(model, images, large))
    return model, images, replace(size, balls=(large.threat_model,))


def main() -> None:
    """Run the comparison."""
    options = common.options(__doc__, images=True, more=add_options)
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    size = replace(size, images=options.images or size.images)
    about = common.machine()
    model, images, size = subject(options, size)
    if options.epsilon:
        size = replace(size, balls=(ThreatModel("linf", options.epsilon / 255),))
    accuracy: dict[str, dict[str, float]] = {}
    speedup: dict[str, float] = {}
    details: dict[str, Any] = {
        "size": asdict(size),
        "threads": torch.get_num_threads(),
        "strong": {},
        "seconds": {},
        "load_after": {},
        "robust_for_one_alone": {},
    }
    for ball in size.balls:
        name = str(ball)
        both = Comparison(model, images, ball, size)
        both.run()
        left = {side: both.ids(side) for side in both.alive}
        robust = {side: len(ids) / len(images) for side, ids in left.items()}
        details["strong"][name] = {
            "robust_accuracy": robust["strong"],
            "difference_in_points": 100 * (robust["strong"] - robust["autoattack"]),
            "speedup": both.strong_speedup(),
        }
        accuracy[name] = {side: robust[side] for side in ("ours", "autoattack")}
        speedup[name] = both.speedup()
        details["seconds"][name] = both.seconds
        details["load_after"][name] = both.load
        details["robust_for_one_alone"][name] = {
            "ours": sorted(left["ours"] - left["autoattack"]),
            "strong": sorted(left["strong"] - left["autoattack"]),
            "autoattack": sorted(left["autoattack"] - left["ours"]),
        }
    figures = {
        "robust_accuracy": accuracy,
        "difference_in_points": {
            name: 100 * (both["ours"] - both["autoattack"]) for name, both in accuracy.items()
        },
        "speedup": speedup,
    }
    common.finish(
        "agreement: the cascade and AutoAttack", figures, details, about, path=options.json
    )


if __name__ == "__main__":
    main()
