"""The inner maximization of training: batches become adversarial images.

Epsilon and alpha may change while training goes on.

The attack climbs a copy of the attacker's view with BatchNorm folded into the convolutions, folded
again before every step: the same function with fewer passes over memory. Where the copy computes
something else on two images (a network that traces to another function), the attack climbs the view
itself.

Free adversarial training (Shafahi et al. 2019) needs no backward pass of its own: the backward pass
of each update also gives the gradient at the images, along which they move before the next of
`attack_replays` updates. Here every batch starts anew at random points; in the paper, at the
perturbation of the batch before.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import activation_info
from sat_ray.attacks import PGD
from sat_ray.data.augmentation.crops import augment
from sat_ray.data.augmentation.erasing import erase
from sat_ray.data.augmentation.mixing import mix
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.models import ModelSpec, folded, refresh
from sat_ray.models.parity import logits_and_gradient, require_agreement
from sat_ray.threat import ThreatModel
from sat_ray.training.catastrophic_overfitting import milder
from sat_ray.training.epoch_metrics import Totals
from sat_ray.training.objectives import AdversarialBatch, Forward, Objective
from sat_ray.training.optimization.schedules import FLOOR, alpha_factor, epsilon_factor
from sat_ray.training.progressive_resizing import image_side, resize
from sat_ray.training.settings import Problem
from sat_ray.utils.compile import compiled
from sat_ray.utils.precision import autocast, short_dtype
from sat_ray.utils.randomness import Randomness


class InnerMaximization:
    """Turn batches into adversarial images through a view in inference mode.

    In inference mode the attack leaves the BatchNorm statistics as they are.
    layout: the memory format of the images.
    """

    def __init__(
        self,
        attacker: nn.Module,
        objective: Objective,
        problem: Problem,
        *,
        layout: torch.memory_format,
    ) -> None:
        self.attacker = attacker
        self.objective = objective
        self.settings = problem.settings
        self.seed = problem.seed
        self.layout = layout
        self.climbed = attacker
        if self.settings.attack_replays == 0:  # free training has no pass through the view
            dtype = short_dtype(self.settings.precision)
            self.climbed = folded(attacker, dtype=dtype, follows=True)
        self.forward = self._callable(self.climbed)
        self.checked = False
        self.num_classes = _num_classes(attacker)
        self.full_attack = self.settings.attack(problem.threat_model)

    def _callable(self, module: nn.Module) -> Forward:
        return compiled(module) if self.settings.compile else module

    def attack_at(self, progress: float, *, collapses: int) -> PGD:
        """Return the attack when this share of the epochs is done, after so many collapses."""
        attack = milder(self.full_attack, times=collapses)
        factor = max(epsilon_factor(progress, warmup=self.settings.epsilon_warmup), FLOOR)
        if factor == 1.0:
            return attack
        ball = attack.threat_model
        return replace(
            attack,
            threat_model=ThreatModel(ball.norm, ball.epsilon * factor),
            step_size=attack.step_size * factor,
        )

    def run(self, attack: PGD, batch: Split, totals: Totals, *, epoch: int) -> AdversarialBatch:
        """Return x, x_adv and y of a batch on the attacker's device, in this epoch's image size."""
        device = next(self.attacker.parameters()).device
        labels = batch.labels.to(device, non_blocking=True)
        rng = Randomness(self.seed, batch.image_ids.to(device, non_blocking=True))
        images, y = self._augmented(
            batch.images.to(device, non_blocking=True), labels, rng, epoch=epoch
        )
        x = self._pixels(images, epoch=epoch)
        if self.settings.attack_replays:
            x_adv = attack.start(x, y, rng, step=epoch).x_adv.requires_grad_()
        else:
            refresh(self.climbed)
            self._check(x)
            with autocast(self.settings.precision, device):
                x_adv = self.objective.maximize(attack, self.forward, x, y, rng, step=epoch)
        totals.watch(x_adv, x, attack.threat_model)
        return x, x_adv, y

    def _augmented(
        self, images: Tensor, labels: Tensor, rng: Randomness, *, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Return changed uint8 images, and their labels: soft ones where images are mixed."""
        settings = self.settings
        images = augment(images, rng, name=settings.augmentation, epoch=epoch)
        if settings.randaugment:
            from sat_ray.data.augmentation.randaugment import randaugment  # imports torchvision

            images = randaugment(
                images,
                rng,
                count=settings.randaugment,
                magnitude=settings.randaugment_magnitude,
                epoch=epoch,
            )
        images = erase(images, rng, probability=settings.random_erasing, epoch=epoch)
        return mix(
            images,
            labels,
            rng,
            mixup=settings.mixup,
            cutmix=settings.cutmix,
            num_classes=self.num_classes,
            epoch=epoch,
        )

    def _pixels(self, images: Tensor, *, epoch: int) -> Tensor:
        """Return uint8 images in [0, 1], resized for an epoch."""
        whole = to_pixels(images)
        side = image_side(self.settings, epoch, full=min(whole.shape[-2:]))
        return resize(whole, side).contiguous(memory_format=self.layout)

    def _check(self, x: Tensor) -> None:
        """Compare, once, the climbed copy with the attacker's view: logits and gradients at x."""
        if self.checked:
            return
        self.checked = True
        in_float32 = self.climbed if self.settings.precision == "float32" else folded(self.attacker)
        if not _same_function(in_float32, self.attacker, x[:2]):
            self.climbed = self.attacker
            self.forward = self._callable(self.climbed)
        if self.settings.compile:
            self._check_compiled(x)

    def _check_compiled(self, x: Tensor) -> None:
        precision = self.settings.precision
        with autocast(precision, x.device):
            ours = logits_and_gradient(self.forward, x)
            theirs = logits_and_gradient(self.climbed, x)
        exact = logits_and_gradient(self.attacker, x)
        require_agreement(
            ours,
            theirs,
            exact,
            what="attacker's view",
            precision=precision,
            asked="training.compile",
        )


def _num_classes(attacker: nn.Module) -> int:
    spec = attacker.spec
    assert isinstance(spec, ModelSpec)
    return spec.num_classes


def _same_function(copied: nn.Module, attacker: nn.Module, x: Tensor) -> bool:
    """Return whether a folded view computes what the view computes, in float32."""
    if copied is attacker:
        return True
    found = logits_and_gradient(copied, x)
    exact = logits_and_gradient(attacker, x)
    try:
        require_agreement(found, exact, exact, what="view", precision="float32", asked="folding")
    except ArithmeticError as reason:
        logging.getLogger(__name__).warning(
            "BatchNorm is not folded into the network that is attacked: %s", reason
        )
        return False
    return True


def follow(attack: PGD, batch: AdversarialBatch, totals: Totals) -> AdversarialBatch:
    """Move adversarial images along the gradient that an update has left at them."""
    x, x_adv, y = batch
    assert x_adv.grad is not None
    ball = attack.threat_model
    moved = ball.project(x_adv.detach() + attack.step_size * ball.steepest_ascent(x_adv.grad), x)
    totals.watch(moved, x, ball)
    return x, moved.requires_grad_(), y


class AlphaSchedule:
    """Set the alpha of every activation that has one, in units of its configured alpha.

    modules: where to look for activations. Raises ValueError where the first alpha is not allowed.
    """

    def __init__(self, *modules: nn.Module, start: float, ramp: float) -> None:
        found = [
            one for module in modules for one in module.modules() if isinstance(one, Activation)
        ]
        self.alphas = [(one, one.alpha) for one in found if one.alpha is not None]
        self.start = start
        self.ramp = ramp
        for one, alpha in self.alphas:
            activation_info(one.activation).check_alpha(
                alpha * start, field=f"training.alpha_start {start:g} times alpha"
            )

    def set(self, progress: float) -> None:
        """Set the alphas for when this share of the epochs is done; 1 gives the configured ones."""
        factor = alpha_factor(progress, start=self.start, ramp=self.ramp)
        for one, alpha in self.alphas:
            one.alpha = alpha * factor
