"""Compare robust accuracy under our cascade with AutoAttack's (Croce & Hein 2020).

Both attack one network on the same images, in both norms. AutoAttack is put together from
torchattacks' APGD, targeted APGD, targeted FAB and Square at the published budgets (100 steps,
9 targets, 5,000 queries), because torchattacks' own AutoAttack class takes 10 steps. The result is
the difference in points of robust accuracy; time is not compared. Digits are enlarged to 32 pixels:
published code of Square never puts a square on the last row or column of an image, while ours does,
as the paper's algorithm says. At 8 pixels that would make ours far stronger.

  python benchmarks/agreement.py                 100 images per norm, half an hour on one core
  python benchmarks/agreement.py --images 899    all of the test split

Figures: robust_accuracy (ours and autoattack, per norm) and difference_in_points (ours minus
autoattack; above 0 means that ours is weaker).
"""

from dataclasses import asdict, dataclass, replace
from time import perf_counter
from typing import Any

import common
import torch
import torchattacks
from parts import digits_at_32_pixels
from torch import Tensor

from sat_ray.attacks import cascade
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.outcomes import robust_image_ids
from sat_ray.evaluation.robustness import evaluate
from sat_ray.models import Normalized, build_model
from sat_ray.threat import ThreatModel, as_255ths
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


def ours(model: Normalized, images: Split, ball: ThreatModel, size: Size) -> set[int]:
    """Return the ids of the images that survive our cascade."""
    attacks = cascade(ball, num_classes=CLASSES, steps=size.steps, queries=size.queries)
    return robust_image_ids(
        evaluate(
            model,
            images.images,
            images.labels,
            images.image_ids,
            attacks=attacks,
            slots=32,
            cascade=True,
        )
    )


def autoattack(model: Normalized, images: Split, ball: ThreatModel, size: Size) -> set[int]:
    """Return the ids of the images that survive AutoAttack;
    each attack takes the survivors of those before it.
    """
    shared: dict[str, Any] = {
        "eps": ball.epsilon,
        "norm": {"linf": "Linf", "l2": "L2"}[ball.norm],
        "seed": 0,
        "n_restarts": 1,
    }
    attacks = [
        torchattacks.APGD(model, steps=size.steps, loss="ce", **shared),
        torchattacks.APGDT(model, steps=size.steps, n_classes=CLASSES, **shared),
    ]
    if size.fab:
        attacks.append(
            torchattacks.FAB(
                model, steps=size.steps, n_classes=CLASSES, multi_targeted=True, **shared
            )
        )
    if size.queries:
        attacks.append(torchattacks.Square(model, n_queries=size.queries, **shared))
    alive = images.take(_right(model, to_pixels(images.images), images.labels).nonzero().flatten())
    for attack in attacks:
        kept = []
        for first in range(0, len(alive), BATCH):
            part = alive.take(slice(first, first + BATCH))
            x = to_pixels(part.images)
            x_adv = attack(x, part.labels)
            assert bool(ball.contains(x_adv, x).all()), (
                f"{type(attack).__name__} returned an infeasible point"
            )
            kept.append(_right(model, x_adv, part.labels))
        alive = alive.take(torch.cat(kept).nonzero().flatten()) if kept else alive
    return set(alive.image_ids.tolist())


@torch.no_grad()
def _right(model: Normalized, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(dim=1) == y


def main() -> None:
    """Run the comparison."""
    options = common.options(__doc__, images=True)
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    size = replace(size, images=options.images or size.images)
    about, splits = common.machine(), digits_at_32_pixels()
    model = trained_model(splits, epochs=size.epochs)
    images = splits["test"].take(slice(0, size.images))
    accuracy: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {"size": asdict(size), "seconds": {}, "robust_for_one_alone": {}}
    for ball in size.balls:
        name = f"{ball.norm} {as_255ths(ball.epsilon)}"
        found = {}
        for label, survive in (("ours", ours), ("autoattack", autoattack)):
            started = perf_counter()
            found[label] = survive(model, images, ball, size)
            details["seconds"][f"{name}, {label}"] = perf_counter() - started
            print(f"{name}, {label}: {len(found[label])} of {len(images)} robust", flush=True)
        accuracy[name] = {label: len(ids) / len(images) for label, ids in found.items()}
        details["robust_for_one_alone"][name] = {
            "ours": sorted(found["ours"] - found["autoattack"]),
            "autoattack": sorted(found["autoattack"] - found["ours"]),
        }
    figures = {
        "robust_accuracy": accuracy,
        "difference_in_points": {
            name: 100 * (both["ours"] - both["autoattack"]) for name, both in accuracy.items()
        },
    }
    common.finish(
        "agreement: the cascade and AutoAttack", figures, details, about, path=options.json
    )


if __name__ == "__main__":
    main()
