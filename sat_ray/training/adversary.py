"""The inner maximization of training: batches become adversarial images, under an epsilon and an alpha that may change on the way.

The attacker's view is climbed with BatchNorm folded into the convolutions, anew for every step: the same function in fewer passes over
memory. Where a look at two images says otherwise (a network that traces to another function), the view itself is climbed.

Free adversarial training (Shafahi et al. 2019) spends no pass of its own: the backward pass of each update also gives the gradient at the
images, along which they move before the next of `attack_replays` updates. Here every batch starts anew at random points; there, at the
perturbation of the batch before.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.activations.registry import activation_info
from sat_ray.attacks import PGD
from sat_ray.data.augmentation import augment
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.models import folded, refresh
from sat_ray.models.parity import logits_and_gradient, require_agreement
from sat_ray.threat import ThreatModel
from sat_ray.training.catastrophic_overfitting import milder
from sat_ray.training.epoch_metrics import Totals
from sat_ray.training.objectives import Forward, Objective
from sat_ray.training.optimization.schedules import FLOOR, alpha_factor, epsilon_factor
from sat_ray.training.progressive_resizing import image_side, resize
from sat_ray.training.settings import TrainingSettings
from sat_ray.training.train_step import Crafted
from sat_ray.utils.compile import compiled
from sat_ray.utils.precision import autocast, short_dtype
from sat_ray.utils.randomness import Randomness


class Crafter:
    """Craft adversarial images through a view in inference mode, so that BatchNorm statistics stand still."""

    def __init__(
        self,
        attacker: nn.Module,
        objective: Objective,
        settings: TrainingSettings,
        threat_model: ThreatModel,
        *,
        seed: int,
    ) -> None:
        self.attacker, self.objective, self.settings, self.seed = (
            attacker,
            objective,
            settings,
            seed,
        )
        free = settings.attack_replays > 0  # has no pass through the view
        self.climbed = (
            attacker
            if free
            else folded(attacker, dtype=short_dtype(settings.precision), follows=True)
        )
        self.forward: Forward = compiled(self.climbed) if settings.compile else self.climbed
        self.checked = False
        self.full_attack = settings.attack(threat_model)

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

    def craft(
        self, attack: PGD, batch: Split, totals: Totals, *, layout: torch.memory_format, epoch: int
    ) -> Crafted:
        """Return the x, x_adv and y of a batch on the attacker's device, in this epoch's size."""
        device = next(self.attacker.parameters()).device
        images, y, ids = (
            tensor.to(device, non_blocking=True)
            for tensor in (batch.images, batch.labels, batch.image_ids)
        )
        rng = Randomness(self.seed, ids)
        whole = to_pixels(augment(images, rng, name=self.settings.augmentation, epoch=epoch))
        x = resize(whole, image_side(self.settings, epoch, full=min(whole.shape[-2:]))).contiguous(
            memory_format=layout
        )
        if self.settings.attack_replays:
            x_adv = attack.start(x, y, rng, step=epoch).x_adv.requires_grad_()
        else:
            refresh(self.climbed)
            self._check(x)
            with autocast(self.settings.precision, device):
                x_adv = self.objective.craft(attack, self.forward, x, y, rng, step=epoch)
        totals.watch(x_adv, x, attack.threat_model)
        return x, x_adv, y

    def _check(self, x: Tensor) -> None:
        """Compare, once, what is climbed with the attacker's view: logits and gradients at the images."""
        if self.checked:
            return
        self.checked, compile = True, self.settings.compile
        in_float32 = self.climbed if self.settings.precision == "float32" else folded(self.attacker)
        if not _same_function(in_float32, self.attacker, x[:2]):
            self.climbed = self.attacker
            self.forward = compiled(self.climbed) if compile else self.climbed
        if compile:
            self._check_compiled(x)

    def _check_compiled(self, x: Tensor) -> None:
        precision = self.settings.precision
        with autocast(precision, x.device):
            ours, theirs = (
                logits_and_gradient(forward, x) for forward in (self.forward, self.climbed)
            )
        exact = logits_and_gradient(self.attacker, x)
        require_agreement(
            ours,
            theirs,
            exact,
            what="attacker's view",
            precision=precision,
            asked="training.compile",
        )


def _same_function(copied: nn.Module, attacker: nn.Module, x: Tensor) -> bool:
    """Say whether a view is still itself when it is folded, in float32."""
    if copied is attacker:
        return True
    found, exact = (logits_and_gradient(one, x) for one in (copied, attacker))
    try:
        require_agreement(found, exact, exact, what="view", precision="float32", asked="folding")
    except ArithmeticError as reason:
        logging.getLogger(__name__).warning(
            "BatchNorm is not folded into the network that is attacked: %s", reason
        )
        return False
    return True


def follow(attack: PGD, crafted: Crafted, totals: Totals) -> Crafted:
    """Move images along the gradient that an update has left at them."""
    x, x_adv, y = crafted
    assert x_adv.grad is not None
    ball = attack.threat_model
    moved = ball.project(x_adv.detach() + attack.step_size * ball.steepest_ascent(x_adv.grad), x)
    totals.watch(moved, x, ball)
    return x, moved.requires_grad_(), y


class AlphaSchedule:
    """Set the alpha of every activation in some modules that has one, in units of its configured alpha.

    Raises ValueError where the first alpha is not allowed.
    """

    def __init__(self, *modules: nn.Module, start: float, ramp: float) -> None:
        found = [
            one for module in modules for one in module.modules() if isinstance(one, Activation)
        ]
        self.alphas = [(one, one.alpha) for one in found if one.alpha is not None]
        self.start, self.ramp = start, ramp
        for one, alpha in self.alphas:
            activation_info(one.activation).check_alpha(
                alpha * start, field=f"training.alpha_start {start:g} times alpha"
            )

    def set(self, progress: float) -> None:
        """Set the alphas for when this share of the epochs is done; 1 gives the configured ones."""
        factor = alpha_factor(progress, start=self.start, ramp=self.ramp)
        for one, alpha in self.alphas:
            one.alpha = alpha * factor
