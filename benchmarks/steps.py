"""The steps that are compared (plain, attack alone, textbook) and a counter of their operations."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hardware import Hardware
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sat_ray.activations.module import Activation
from sat_ray.attacks.losses import cross_entropy
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.models import folded, refresh, settle_layout, view
from sat_ray.threat import ThreatModel
from sat_ray.training.loop import TrainingSettings
from sat_ray.training.optimization.optimizer import fuses, parameter_groups
from sat_ray.utils.precision import autocast, short_dtype
from sat_ray.utils.randomness import Randomness

THREAT_MODEL = ThreatModel("linf", 8 / 255)
LEARNING_RATE = 0.01


@dataclass(frozen=True)
class Size:
    """How much is measured. images: per worker and step; steps: in one timed sample."""

    width: int
    images: int
    steps: int
    rounds: int
    hardware: Hardware = field(default_factory=Hardware)

    def settings(self, *, workers: int = 1, compiled: bool = False) -> TrainingSettings:
        """Describe an endless training in which every worker has one BatchNorm group; nothing
        is validated while it is timed.
        """
        return TrainingSettings(
            epochs=1000,
            global_batch_size=self.images * workers,
            batchnorm_group_size=self.images,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup_epochs=0,
            validate_every=1000,
            precision=self.hardware.precision,
            compile=compiled,
        )

    def numbers(self) -> AbstractContextManager[object]:
        """Return the context in which models are called."""
        return autocast(self.hardware.precision, self.hardware.place)


class OperationCounter(TorchDispatchMode):
    """Count floating-point operations,
    and the convolutions whose backward pass computes the gradient of a weight.
    """

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


class Plain:
    """A training step without an attack, and the attack alone, on the same batches,
    model and layout as `fit` uses.
    """

    def __init__(self, size: Size, train: Split) -> None:
        self.size, self.train = size, train.to(size.hardware.place)
        model = size.hardware.build(width=size.width)
        self.layout = settle_layout(model)
        self.model = model.train()
        self.attacker = folded(
            view(model), dtype=short_dtype(size.hardware.precision), follows=True
        )
        self.attack = size.settings().attack(THREAT_MODEL)
        groups = parameter_groups(model, weight_decay=5e-4)
        self.optimizer = torch.optim.SGD(
            groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True, fused=fuses(model)
        )

    def batches(self) -> Iterator[Split]:
        """Yield the batches of one sample."""
        for rows in (
            torch.randperm(len(self.train)).to(self.size.hardware.place).split(self.size.images)
        ):
            yield self.train.take(rows)

    def step(self) -> float:
        """Train on the clean batches of one sample; return seconds per step."""

        def work() -> None:
            for batch in self.batches():
                x = to_pixels(batch.images).contiguous(memory_format=self.layout)
                self.optimizer.zero_grad(set_to_none=True)
                with self.size.numbers():
                    logits = self.model(x)
                cross_entropy(logits, batch.labels).mean().backward()
                self.optimizer.step()

        return self.size.hardware.seconds_of(work) / self.size.steps

    def attack_alone(self) -> float:
        """Attack the batches of one sample; return seconds per step. The attack alone is timed."""
        ready = [
            (
                to_pixels(batch.images).contiguous(memory_format=self.layout),
                batch.labels,
                Randomness(0, batch.image_ids),
            )
            for batch in self.batches()
        ]

        def work() -> None:
            for x, y, rng in ready:
                refresh(self.attacker)
                with self.size.numbers():
                    self.attack.run(self.attacker, x, y, rng)

        return self.size.hardware.seconds_of(work) / self.size.steps


class ComposedSilu(nn.Module):
    """SiLU, written from its formula."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply x * sigmoid(x) to every element."""
        return x * torch.sigmoid(x)


class Textbook:
    """Adversarial training as tutorials show it. bf16: under autocast, which few of them do."""

    def __init__(self, size: Size, train: Split, *, bf16: bool = False) -> None:
        self.size, self.train, self.bf16 = size, train.to(size.hardware.place), bf16
        self.model = size.hardware.build(width=size.width).train()
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Activation):
                    setattr(parent, name, ComposedSilu())
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=LEARNING_RATE,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
        )

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        with autocast("bf16", x.device) if self.bf16 else nullcontext():
            return F.cross_entropy(self.model(x), y)

    def attacked(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one signed step from a random start."""
        epsilon = THREAT_MODEL.epsilon
        self.model.eval()
        x_adv = (
            (x + torch.empty_like(x).uniform_(-epsilon, epsilon))
            .clamp(0, 1)
            .detach()
            .requires_grad_()
        )
        self.loss(x_adv, y).backward()
        assert x_adv.grad is not None
        moved = x_adv.detach() + epsilon * x_adv.grad.sign()
        self.model.train()
        return torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)

    def step(self) -> float:
        """Train on the batches of one sample; return seconds per step."""

        def work() -> None:
            for rows in (
                torch.randperm(len(self.train)).to(self.size.hardware.place).split(self.size.images)
            ):
                x, y = self.train.images[rows].float() / 255, self.train.labels[rows]
                x_adv = self.attacked(x, y)
                self.optimizer.zero_grad()
                self.loss(x_adv, y).backward()
                self.optimizer.step()

        return self.size.hardware.seconds_of(work) / self.size.steps
