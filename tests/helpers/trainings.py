"""What the tests of training share: a small model, a short training, two processes,
and a record of what its attack was given.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from repository import paths_of_tests
from sklearn.datasets import load_digits
from torch import Tensor
from waiting import PATIENCE_SECONDS

from sat_ray.attacks import PGD
from sat_ray.attacks.losses import cross_entropy
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.models import Normalized, build_model, settle_layout, view
from sat_ray.threat import ThreatModel
from sat_ray.training.adversary import InnerMaximization
from sat_ray.training.epoch_metrics import Totals
from sat_ray.training.loop import (
    EpochReport,
    RunOptions,
    TrainingSettings,
    TrainingState,
    fit,
)
from sat_ray.training.objectives import make_objective
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.resume.checkpointing import pack_state, unpack_state
from sat_ray.training.settings import Problem
from sat_ray.training.train_step import TrainStep
from sat_ray.utils.randomness import Randomness, permutation

BALL = ThreatModel("linf", 40 / 255)
SMALL = TrainingSettings(
    epochs=2,
    global_batch_size=32,
    batchnorm_group_size=16,
    learning_rate=0.1,
    warmup_epochs=0,
    validate_every=9,
    validation_steps=4,
)
MEASURED = ("throughput/images_per_second", "system/worker_cpus", "system/worker_memory_gib")


def train_small(
    digits: Split, threat_model: ThreatModel, *, activation: str, epochs: int = 5
) -> Normalized:
    """Train a small_resnet of width 8 on the first 900 digits with PGD-1; (train, attack,
    update) and nothing else.
    """
    model = small_model(activation)
    attacker = view(model)
    attack = PGD(threat_model=threat_model, steps=1, step_size=threat_model.epsilon)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        for rows in permutation(900, seed=0, epoch=epoch).split(50):
            batch = digits.take(rows)
            x_adv = attack.run(
                attacker,
                to_pixels(batch.images),
                batch.labels,
                Randomness(0, batch.image_ids),
                step=epoch,
            )
            optimizer.zero_grad()
            cross_entropy(model(x_adv), batch.labels).mean().backward()
            optimizer.step()
    return model.eval()


def small_model(activation: str = "silu", **choices: Any) -> Normalized:
    """Build the model of these tests, the same weights every time."""
    shape = {"num_classes": 10, "in_channels": 1, "width": 8, "mean": (0.3,), "std": (0.35,)}
    return build_model("small_resnet", activation=activation, seed=0, **shape, **choices)


def train(model: Normalized, digits: Split, images: int = 128, **changes: Any) -> list[EpochReport]:
    """Train on the first digits, validating on 32 others. changes: see `arguments_of_fit`."""
    parts = digits.take(slice(0, images)), digits.take(slice(1000, 1032))
    return list(fit(model, *parts, threat_model=BALL, **arguments_of_fit(SMALL, changes)))


def arguments_of_fit(settings: TrainingSettings, changes: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `fit`. changes: of the settings, of RunOptions, or arguments."""
    of_settings, of_options = (
        {field.name for field in dataclasses.fields(kind)}
        for kind in (TrainingSettings, RunOptions)
    )
    changed = {key: value for key, value in changes.items() if key in of_settings}
    options = {key: value for key, value in changes.items() if key in of_options}
    others = {key: changes[key] for key in changes.keys() - changed.keys() - options.keys()}
    return {
        "settings": dataclasses.replace(settings, **changed),
        "options": RunOptions(**options),
        **others,
    }


def kept_states(every: int = 1) -> tuple[list[TrainingState], dict[str, Any]]:
    """Return a list, and the options with which a training adds to it its state after every so
    many steps, each read back from its file.
    """
    seen: list[TrainingState] = []
    return seen, {
        "checkpoint_every": every,
        "on_checkpoint": lambda state: seen.append(unpack_state(pack_state(state))),
    }


def step_of(
    images: Split, *, activation: str = "silu", device: str = "cpu", **changes: Any
) -> Callable[[int], None]:
    """Build a training's parts on a device and return its step on these images. changes:
    of TrainingSettings.
    """
    settings = TrainingSettings(
        epochs=4, global_batch_size=len(images), batchnorm_group_size=len(images), **changes
    )
    model = small_model(activation).to(device)
    layout = settle_layout(model)
    objective = make_objective(settings)
    group = ProcessGroup(device=device)
    train_step = TrainStep(model.train(), objective, settings, process_group=group)
    problem = Problem(settings=settings, threat_model=BALL)
    maximization = InnerMaximization(view(model), objective, problem, layout=layout)
    totals = Totals((0.0, 0.0, 0.0), device=torch.device(device), process_group=group)

    def step(number: int) -> None:
        attack = maximization.attack_at(0.5, collapses=0)
        adversarial = maximization.run(attack, images, totals, epoch=1)
        train_step.update([adversarial], totals, learning_rate=0.1, step=number, number=number)

    return step


def digits_again() -> Split:
    """Return what the fixture `digits` is, in a process that has no fixtures."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy((images * 255 / 16).round()).to(torch.uint8).view(-1, 1, 8, 8)
    return Split(pixels, torch.from_numpy(labels).long(), torch.arange(len(labels)))


@contextmanager
def worker_of_two(rank: int, folder: str) -> Iterator[ProcessGroup]:
    """Be one of two gloo workers of one thread each. folder: where they find each other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    yield ProcessGroup(rank, 2)
    dist.destroy_process_group()


def in_two_processes(call: str) -> None:
    """Run `module.function({rank}, ...)` of these tests in two processes at once, for ranks 0 and
    1; AssertionError shows what failed.
    """
    code = f"import {call.partition('.')[0]}; "
    environment = os.environ | {"PYTHONPATH": paths_of_tests()}
    start = [[sys.executable, "-c", code + call.format(rank=rank)] for rank in (0, 1)]
    running = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in start
    ]
    for process in running:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, output


@dataclasses.dataclass
class AttackCalls:
    """What the training attack was given, in order: (epoch, image ids, start) of every call."""

    calls: list[tuple[int, list[int], Tensor]]

    def ids(self, epoch: int) -> list[int]:
        """Return the image ids of one epoch in the order in which they were trained."""
        return [one for at, ids, _ in self.calls if at == epoch for one in ids]

    def starts(self) -> dict[tuple[int, int], Tensor]:
        """Return the start of every (epoch, image id)."""
        return {
            (epoch, one): row
            for epoch, ids, x in self.calls
            for one, row in zip(ids, x, strict=True)
        }


def record_attacks(patch: Any) -> AttackCalls:
    """Let a monkeypatch record every call of the training attack."""
    seen, run = AttackCalls([]), PGD.run

    def recording(
        self: PGD, model: Any, x: Tensor, y: Tensor, rng: Randomness, *, step: int = 0
    ) -> Tensor:
        seen.calls.append(
            (step, rng.image_ids.tolist(), self.start(x, y, rng, step=step).x_adv.clone())
        )
        return run(self, model, x, y, rng, step=step)

    patch.setattr(PGD, "run", recording)
    return seen


def enlarged(split: Split, factor: int = 2) -> Split:
    """Return the same images with so many times their height and width: every pixel is a square."""
    images = split.images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return dataclasses.replace(split, images=images)


TENSORS = ("weights", "optimizer", "average", "best", "good")


def comparable(state: TrainingState) -> dict[str, Any]:
    """Return a state without what a clock measured."""
    history = [
        {name: value for name, value in row.items() if name not in MEASURED}
        for row in state.history
    ]
    return dataclasses.asdict(
        dataclasses.replace(state, history=history, epoch_ends=[], seconds=0.0, epoch_seconds=0.0)
    )


def assert_same_bits(ours: TrainingState, theirs: TrainingState) -> None:
    """Assert that two states agree in all but the time they took."""
    one, other = comparable(ours), comparable(theirs)
    for part in TENSORS:
        left, right = one.pop(part), other.pop(part)
        assert left.keys() == right.keys() and (left or part in ("average", "good"))
        assert all(torch.equal(left[name], right[name]) for name in left), part
    assert one == other
