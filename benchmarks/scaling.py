"""Predict the hours and GPU-hours of the paper's ladder on many GPUs, and check the simulation.

    python benchmarks/scaling.py [--price P]        tables for docs/explanation/scaling.md
    python benchmarks/scaling.py --check [--quick]  1, 2 and 4 workers of this machine

Nothing was measured on a cluster of GPUs. Every input says where it comes from; a range is that of
a prediction with all inputs at their fast ends, and with all at their slow ends. --check measures
the parts of a small training, predicts its wall time on more workers, and trains.
"""

import argparse
import functools
import math
import random
from dataclasses import dataclass
from pathlib import Path

from common import markdown_row
from scaling_inputs import INPUTS, RELATIVE_RATE, given, network
from simulation import (
    StepParts,
    Task,
    TrainingParts,
    exposed_exchange,
    makespan,
    training_time,
)

from sat_ray.attacks.spec import AttackSpec
from sat_ray.data.sources.registry import dataset_source
from sat_ray.evaluation.card.settings import most_passes
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.cost.estimate import forward_operations, forwards_per_image
from sat_ray.sweep.execute.training import steps_between_checkpoints
from sat_ray.sweep.plan.evaluations import attacks_for, shard_bounds, strong_attacks_for
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.recipes import RECIPES
from sat_ray.sweep.recipes.imagenet_ladder import RUNGS
from sat_ray.sweep.search.search_space import groups
from sat_ray.training.settings import TrainingSettings

GPUS = (8, 64, 256)
CASES = ("usual", "fast", "slow")
LARGE_BATCH = 8192  # images; Goyal et al. 2017 trained ResNet-50 on clean images with it
IMAGES = dataset_source("imagenet")


LADDER = ("imagenet_resnet50", *(rung.name for rung in RUNGS))


def efficiency(step: float, plain: float, gradients: float, *, workers: int) -> float:
    """Return the share of perfect scaling that the exchange leaves, in (0, 1].

    step, plain: seconds of an adversarial and of a plain step of one worker. Two thirds of the
    plain one are its backward pass; the attack exchanges nothing.
    """
    hiding = given("share of a backward pass that hides the exchange", "usual")
    parts = StepParts(group=step, gradients=gradients, hidden=hiding * 2 / 3 * plain)
    waited = exposed_exchange(parts, workers=workers, all_reduce=network().all_reduce)
    return step / (step + waited)


@dataclass(frozen=True)
class Rung:
    """One recipe of the ladder under one choice of the inputs: usual, fast or slow."""

    config: SweepConfig
    case: str
    batch: int = 0  # images of a global batch, 0 for the recipe's

    def given(self, name: str) -> float:
        """Return an input."""
        return given(name, self.case)

    @functools.cached_property
    def relative_seconds(self) -> float:
        """Return the time of an image / that of ResNet-50 at 224 pixels."""
        shape = self.config.data.shape()
        assert shape is not None
        forward, _ = forward_operations(self.config, shape, classes=IMAGES.classes)
        base = RECIPES["imagenet_resnet50"]()
        whole, _ = forward_operations(base, (3, 224, 224), classes=IMAGES.classes)
        rate = RELATIVE_RATE[self.config.model.name]
        if self.config.model.name != "resnet50":
            rate *= self.given("rates of other networks / those of the list below")
        return forward / whole / rate

    @property
    def groups(self) -> int:
        """Return the BatchNorm groups of a global batch: no training has more workers."""
        training = self.config.training
        return (self.batch or training.global_batch_size) // training.batchnorm_group_size

    def training(self, settings: TrainingSettings, *, workers: int) -> TrainingParts:
        """Return the parts of a training."""
        shape = self.config.data.shape()
        assert shape is not None
        _, parameters = forward_operations(self.config, shape, classes=IMAGES.classes)
        size = settings.batchnorm_group_size
        each = self.relative_seconds / self.given("training, ResNet-50 at 224 pixels, bf16")
        backward = 2 / forwards_per_image(settings)  # of the update, in shares of a step
        jitter = self.given("steps of one GPU: standard deviation / mean")
        rng = random.Random(0)
        step = StepParts(
            group=size * each,
            spread=[max(0.5, rng.gauss(1, jitter)) for _ in range(200)],
            unequal=self.given("speeds of GPUs: standard deviation / mean"),
            gradients=4 * parameters,
            buffers=4 * parameters / 480,  # ResNet-50's share of statistics in its parameters
            hidden=self.given("share of a backward pass that hides the exchange")
            * size
            * each
            * backward,
            reading=size / (8 * self.given("decoding, on each of 8 cores of a worker")),
        )
        batch = self.batch or settings.global_batch_size
        targets = settings.validation_targets
        share = self.given("strong attacks: passes of an image / 1,010")
        passes = (settings.validation_steps + 1) * (1 + targets * share)
        state = 3 * 4 * parameters  # weights, momentum and the best weights
        return TrainingParts(
            step=step,
            epochs=settings.epochs,
            steps=(IMAGES.images - IMAGES.test - IMAGES.val) // batch,
            groups=self.groups,
            start=self.given("start of a training: workers, group, first step"),
            validation=IMAGES.val * passes * self.pass_seconds,
            waves=math.ceil(IMAGES.val / self.config.evaluation.slots),
            validate_every=settings.validate_every,
            epoch_end=state / self.given("checkpoint: copy from the GPU"),
            checkpoint_every=steps_between_checkpoints(batch, workers=workers),
            copy=state / self.given("checkpoint: copy from the GPU"),
            write=state / self.given("checkpoint: pack, sha256 and write"),
        )

    @property
    def pass_seconds(self) -> float:
        """Return the seconds of a forward and backward pass of one image under attack."""
        return self.relative_seconds * self.given("pass of an attack, the same network, float32")

    def passes(self, specs: tuple[AttackSpec, ...]) -> float:
        """Return the passes of an image under these attacks."""
        shares = {
            True: self.given("PGD-200, last iterate: images attacked"),
            False: self.given("PGD-200: passes of an image / 201"),
        }
        strong = self.given("strong attacks: passes of an image / 1,010")
        return sum(
            spec.runs
            * (spec.steps + 1)
            * (shares[spec.final_iterate] if spec.algorithm == "pgd" else strong)
            for spec in specs
        )

    def shards(self, images: int, passes: float) -> list[Task]:
        """Return the shards of one evaluation."""
        start = self.given("start of a shard")
        return [
            (1, start + (last - first) * passes * self.pass_seconds)
            for first, last in shard_bounds(images, self.config.evaluation.shard_size)
        ]

    def trained(self, settings: TrainingSettings, *, workers: int) -> dict[str, float]:
        """Return the seconds of a training by what they go to."""
        return training_time(
            self.training(settings, workers=workers),
            workers=workers,
            all_reduce=network(self.case).all_reduce,
            rng=random.Random(0),
        )

    def stages(self, gpus: int) -> dict[str, list[Task]]:
        """Return the tasks of every stage of the sweep on so many GPUs."""
        config = self.config
        chosen = [group.members[0] for group in groups(config.search.points())]
        seeds = len(config.final.seeds)
        workers = min(gpus, self.groups)
        trial = sum(self.trained(config.trial_training(), workers=1).values())
        whole = sum(self.trained(config.training, workers=workers).values())
        validation: list[Task] = []
        evaluation: list[Task] = []
        for point in chosen:
            pgd = attacks_for(config, point)
            strong = strong_attacks_for(config, point, num_classes=IMAGES.classes)
            first = self.passes(pgd[:1]) + self.passes(strong)
            validation += seeds * self.shards(IMAGES.val, first)
            evaluation += seeds * self.shards(IMAGES.test, self.passes(pgd + strong))
        # of the passes at most; a query is half a pass
        of_card = most_passes(config.evaluation_attacks()[0], config.card)
        of_card += config.card.cascade_queries // 2
        of_card *= self.given("strong attacks: passes of an image / 1,010")
        nodes = self.given("start of the nodes, once a sweep")
        return {
            "nodes": [(0, nodes)],
            "search": [(1, trial)] * planned_trials(config),
            "training": [(workers, whole)] * (len(chosen) * seeds),
            "validation": validation,
            "card": [(1, config.card.images * of_card * self.pass_seconds)],
            "evaluation": evaluation,
        }


@dataclass(frozen=True)
class Predicted:
    """Hours of a sweep by stage, GPU-hours of its work, and workers of one training."""

    hours: dict[str, float]
    gpu_hours: float
    workers: int

    @classmethod
    def of(cls, stages: dict[str, list[Task]], gpus: int) -> "Predicted":
        """Run the stages one after the other."""
        hours = {name: makespan([[tasks]], gpus) / 3600 for name, tasks in stages.items()}
        work = sum(size * seconds for tasks in stages.values() for size, seconds in tasks)
        return cls(hours, work / 3600, stages["training"][0][0])

    @property
    def total(self) -> float:
        """Return the hours of the sweep."""
        return sum(self.hours.values())


def shown(value: float) -> str:
    """Write a number with two digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def spread(usual: float, one: float, other: float) -> str:
    """Write a number and its range."""
    low, high = sorted((one, other))
    return f"{shown(usual)} ({shown(low)} to {shown(high)})"


def row_of(name: str) -> list[str]:
    """Return the ladder table's row of a recipe."""
    found = {case: Rung(RECIPES[name](), case) for case in CASES}
    made = {
        (case, gpus): Predicted.of(rung.stages(gpus), gpus)
        for case, rung in found.items()
        for gpus in GPUS
    }
    work = spread(*(made[case, GPUS[0]].gpu_hours for case in CASES))
    hours = [spread(*(made[case, gpus].total for case in CASES)) for gpus in GPUS]
    most = made["usual", GPUS[-1]]
    longest = max(most.hours, key=lambda stage: most.hours[stage])
    bound = f"{longest}, {shown(most.hours[longest])} h"
    return [f"`{name}`", work, *hours, f"{most.workers}", bound]


def whole_ladder() -> tuple[list[float], list[list[float]]]:
    """Return the GPU-hours of all sweeps in each case, and the hours where all share a cluster."""
    work = []
    hours: list[list[float]] = [[] for _ in GPUS]
    for case in CASES:
        ladder = [Rung(RECIPES[name](), case) for name in LADDER]
        for number, gpus in enumerate(GPUS):
            sweeps = [list(rung.stages(gpus).values()) for rung in ladder]
            hours[number].append(makespan(sweeps, gpus) / 3600)
        work.append(sum(Predicted.of(rung.stages(GPUS[0]), GPUS[0]).gpu_hours for rung in ladder))
    return work, hours


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    ruler = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(markdown_row(*cells) for cells in [head, ruler, *rows])


def ladder_table(work: list[float], hours: list[list[float]]) -> str:
    """Return the hours of the ladder on all clusters. work, hours: of `whole_ladder`."""
    head = ["sweep", "GPU-hours of work", *(f"hours on {gpus}" for gpus in GPUS)]
    head += ["workers of a training on 256", "longest stage on 256"]
    together = [spread(*of_cluster) for of_cluster in hours]
    last = ["all sweeps beside each other", spread(*work), *together, "", ""]
    return table(head, [*map(row_of, LADDER), last])


def batch_table() -> str:
    """Return where one training of ResNet-50 and of L1 spends its time, by the global batch."""
    rows = []
    for name in ("imagenet_resnet50", "imagenet_efficientnet_l1"):
        for batch in (0, LARGE_BATCH):
            rung = Rung(RECIPES[name](), "usual", batch)
            for workers in sorted({min(gpus, rung.groups) for gpus in GPUS}):
                seconds = rung.trained(rung.config.training, workers=workers)
                whole = sum(seconds.values())
                shares = [f"{100 * part / whole:.0f} %" for part in seconds.values()]
                size = batch or rung.config.training.global_batch_size
                rows.append([f"`{name}`, {size:,}", f"{workers}", shown(whole / 3600), *shares])
    head = ["training, global batch", "workers", "hours", *seconds]
    return table(head, rows)


def input_table() -> str:
    """Return every input with its range, unit and source."""
    rows = [
        [name, one.unit, *(f"{number:g}" for number in (one.usual, one.fast, one.slow)), one.source]
        for name, one in INPUTS.items()
    ]
    return table(["input", "unit", "usual", "fast", "slow", "source"], rows)


def main() -> None:
    """Print the prediction, or check it on this machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--price", type=float, default=0.0, help="of a GPU-hour, any currency")
    parser.add_argument("--check", action="store_true", help="train here with 1, 2 and 4 workers")
    parser.add_argument("--quick", action="store_true", help="with --check: end within 5 minutes")
    parser.add_argument("--smoke", action="store_true", help="with --check: to try it out")
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="with --check: write figures here"
    )
    options = parser.parse_args()
    if options.check:
        import scaling_check

        scaling_check.run(quick=options.quick, smoke=options.smoke, path=options.json)
        return
    work, hours = whole_ladder()
    print(input_table(), ladder_table(work, hours), batch_table(), sep="\n\n")
    if options.price:
        money = spread(*(options.price * one for one in work))
        print(f"\nAt {options.price:g} for a GPU-hour all of the work costs {money}.")


if __name__ == "__main__":
    main()
