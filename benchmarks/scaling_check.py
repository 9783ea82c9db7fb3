"""Predict the wall time of a training on 1, 2 and 4 workers of this machine, and train.

The parts are measured first: steps, validation and checkpoint on one worker, with the other cores
idle and with all of them busy, the exchange of gradients without compute, and the start-up of a
short training on one and on two workers, which gives that of every further worker. Then the
product's own Ray Train session trains. Neighbours take time from parts and trainings alike, but not
at the same moments: the load stands beside every figure.
"""

import os
import random
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import common
import scaling_parts
from scaling_parts import GROUPS, Exchanged, Measured
from simulation import Exchange, StepParts, TrainingParts, training_time

from sat_ray.sweep.tasks import TrainingTask

WORKERS = (1, 2, 4)


@dataclass(frozen=True)
class Length:
    """How much is trained and measured. epochs of the training whose time is predicted, of the
    shorter one whose start-up is measured, and of the measured steps.
    """

    network: str
    epochs: int
    short_epochs: int
    measured_epochs: int
    rounds: int


FULL = Length("resnet18", epochs=6, short_epochs=1, measured_epochs=2, rounds=10)
QUICK = Length("resnet18", epochs=2, short_epochs=1, measured_epochs=2, rounds=4)
SMOKE = Length("small_resnet", epochs=2, short_epochs=1, measured_epochs=2, rounds=2)


@dataclass(frozen=True)
class Parts:
    """What was measured.

    alone, busy: with the other cores idle, and with all cores busy; started: seconds of the
    start-up on one worker and on two.
    """

    alone: list[Measured]
    busy: list[Measured]
    exchanged: dict[int, Exchanged]
    copy: float
    write: float
    started: tuple[float, float]

    def all_reduce(self) -> Exchange:
        """Return the measured exchanges, of the sizes that a training has."""

        def seconds(size: float, workers: int) -> float:
            found = self.exchanged[workers]
            known = {
                found.gradient_bytes: found.gradients,
                found.statistics_bytes: found.statistics,
            }
            return known[size]

        return seconds

    def of_training(self, task: TrainingTask, *, workers: int) -> TrainingParts:
        """Return the parts of a training on so many workers of this machine."""
        cores = common.cores()
        found = self.alone if workers < cores else self.busy
        whole = fmean(seconds for one in found for seconds in one.steps)
        single = fmean(seconds for one in found for seconds in one.one_group)
        group = (whole - single) / (GROUPS - 1)
        splits = task.dataset.manifest["splits"]
        step = StepParts(
            group=group,
            fixed=single - group,
            spread=[seconds / whole for one in found for seconds in one.steps],
            gradients=self.exchanged[2].gradient_bytes,
            buffers=self.exchanged[2].statistics_bytes,
            cores=cores,
        )
        return TrainingParts(
            step=step,
            epochs=task.training.epochs,
            steps=splits["train"] // task.training.global_batch_size,
            groups=GROUPS,
            start=self.start(workers),
            validation=fmean(one.validation for one in found),
            waves=-(-splits["val"] // task.slots),
            validate_every=task.training.validate_every,
            epoch_end=fmean(one.epoch_end for one in found),
            copy=self.copy,
            write=self.write,
        )

    def predicted(self, task: TrainingTask, *, workers: int) -> dict[str, float]:
        """Return the predicted seconds of a training by what they go to."""
        return training_time(
            self.of_training(task, workers=workers),
            workers=workers,
            all_reduce=self.all_reduce(),
            rng=random.Random(0),
        )

    def start(self, workers: int) -> float:
        """Return the start-up on so many workers: each further one takes as long as the second."""
        one, two = self.started
        return one + (workers - 1) * (two - one)


def measure(task: TrainingTask, short: TrainingTask, folder: Path, length: Length) -> Parts:
    """Measure the parts. A Ray must run."""
    alone = scaling_parts.measure_workers(task, processes=1, epochs=length.measured_epochs)
    busy = scaling_parts.measure_workers(
        task, processes=common.cores(), epochs=length.measured_epochs
    )
    exchanged = {
        workers: scaling_parts.measure_exchange(task, workers=workers, rounds=length.rounds)
        for workers in WORKERS
        if workers > 1
    }
    copy, write = scaling_parts.measure_checkpoint(task, folder / "state")
    one, two = (
        start_up(short, folder / f"short on {workers}", workers=workers) for workers in (1, 2)
    )
    return Parts(alone, busy, exchanged, copy, write, (one, two))


def start_up(short: TrainingTask, folder: Path, *, workers: int) -> float:
    """Return the seconds that a short training takes beside its epochs. A Ray must run."""
    wall, epochs = scaling_parts.train_on_ray(short, folder, workers=workers)
    return wall - epochs


def check(length: Length) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure, predict and train; return figures and details."""
    # Ray starts its workers with a lower priority, which neighbours would feel differently
    os.environ |= {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    from sat_ray.integrations.ray.session import ray_session

    with tempfile.TemporaryDirectory(prefix="sat_ray-scaling-") as name, ray_session():
        folder = Path(name)
        task = scaling_parts.task_in(
            folder / "data",
            epochs=length.epochs,
            validate_every=length.epochs,  # an attack on an earlier state takes fewer passes
            network=length.network,
        )
        short = replace(task, until=length.short_epochs)
        short = replace(
            short,
            training=replace(task.training, epochs=length.short_epochs, validate_every=1),
        )
        parts = measure(task, short, folder, length)
        loads = {"parts measured": os.getloadavg()[0]}
        predicted: dict[str, float] = {}
        measured: dict[str, float] = {}
        details: dict[str, Any] = {"parts": asdict(parts)}
        for workers in WORKERS:
            of_parts = parts.predicted(task, workers=workers)
            wall, epochs = scaling_parts.train_on_ray(
                task, folder / f"on {workers}", workers=workers
            )
            key = f"workers: {workers}"
            loads[key] = os.getloadavg()[0]
            predicted[key], measured[key] = sum(of_parts.values()), wall
            details[key] = {"predicted": of_parts, "measured_epochs": epochs}
    details["load_1_minute"] = loads
    ratios = {key: predicted[key] / measured[key] for key in measured}
    figures = {
        "predicted_seconds": predicted,
        "measured_seconds": measured,
        "predicted_over_measured": ratios,
    }
    return figures, details


def run(*, quick: bool, smoke: bool, path: Path | None) -> None:
    """Check the simulation and print how far it is off."""
    about = common.machine()
    length = SMOKE if smoke else QUICK if quick else FULL
    figures, details = check(length)
    common.finish(
        "scaling: predicted and measured wall time of a training",
        figures,
        details,
        about,
        path=path,
    )
