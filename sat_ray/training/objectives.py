"""What training maximizes over the ball and minimizes over the weights.

cross_entropy   max_x'  L(f(x'), y)
                min     L(f(x'), y)                              (Madry et al. 2018)
trades          max_x'  KL(f(x) || f(x'))
                min     L(f(x), y) + beta KL(f(x) || f(x'))      (Zhang et al. 2019, equation 5)
mart            max_x'  L(f(x'), y)
                min     B(f(x'), y) + lambda KL(f(x) || f(x')) (1 - p_y(x))
                B(f(x'), y) = -log p_y(x') - log(1 - max_{k != y} p_k(x'))     (Wang et al. 2020)

L: cross-entropy; KL between the softmax distributions p. Of a soft or smoothed label every term
with y is the mean over the classes, by their shares. At x' = x the KL has no gradient, so trades'
attack starts from a little noise. The updates of trades and mart pass clean and adversarial images
through the model together, under shared BatchNorm statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sat_ray.attacks import PGD
from sat_ray.attacks.losses import cross_entropy
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.randomness import Randomness

Forward = Callable[[Tensor], Tensor]
AdversarialBatch = tuple[Tensor, Tensor, Tensor]  # x, x_adv, y: classes or soft labels


class Objective(Protocol):
    """The two halves of a training step.

    x, x_adv: (N, C, H, W) float32 in [0, 1]; y: (N,) int64 classes, or (N, K) float32 soft labels:
    shares of the classes that sum to 1.
    """

    def maximize(
        self, attack: PGD, attacker: Forward, x: Tensor, y: Tensor, rng: Randomness, *, step: int
    ) -> Tensor:
        """Return x_adv, the last iterate of the inner maximization; step: counter of the noise."""
        ...

    def losses(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return each image's loss (N,) float32, and the logits (N, K) of x_adv.

        `model` is called once.
        """
        ...


@dataclass(frozen=True)
class AdversarialCrossEntropy:
    """Train on adversarial images alone."""

    label_smoothing: float = 0.0

    def maximize(
        self, attack: PGD, attacker: Forward, x: Tensor, y: Tensor, rng: Randomness, *, step: int
    ) -> Tensor:
        """Ascend the cross-entropy of the true label."""
        return attack.run(attacker, x, y, rng, step=step)

    def losses(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of x_adv."""
        logits = model(x_adv)
        return cross_entropy(logits, y, label_smoothing=self.label_smoothing), logits


@dataclass(frozen=True)
class Trades:
    """Trade clean accuracy for equal predictions on clean and adversarial images.

    noise: of the start, in [0, 1] pixels.
    """

    beta: float
    noise: float
    label_smoothing: float = 0.0

    def maximize(
        self, attack: PGD, attacker: Forward, x: Tensor, y: Tensor, rng: Randomness, *, step: int
    ) -> Tensor:
        """Ascend the KL divergence from the clean prediction; labels are not used."""
        ball = attack.threat_model
        with torch.no_grad():
            clean = attacker(x)
        noise = self.noise * rng.normal("trades", x.shape[1:], step=step, device=x.device)
        x_adv = ball.project(x + noise, x)
        for _ in range(attack.steps):
            point = x_adv.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(kl_divergence(clean, attacker(point)).sum(), point)
            moved = point.detach() + attack.step_size * ball.steepest_ascent(gradient)
            x_adv = ball.project(moved, x)
        return x_adv

    def losses(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of x plus beta times the divergence."""
        clean, adversarial = model(torch.cat([x, x_adv])).chunk(2)
        natural = cross_entropy(clean, y, label_smoothing=self.label_smoothing)
        return natural + self.beta * kl_divergence(clean, adversarial), adversarial


@dataclass(frozen=True, kw_only=True)
class Mart(AdversarialCrossEntropy):
    """Weigh each image by how far its clean prediction is from the label. weight: lambda."""

    weight: float

    def losses(self, model: Forward, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boosted cross-entropy of x_adv plus the weighted divergence."""
        clean, adversarial = model(torch.cat([x, x_adv])).chunk(2)
        shares = _shares(y, adversarial, smoothing=self.label_smoothing)
        missed = 1 - (shares * clean.float().softmax(dim=1)).sum(dim=1)
        divergence = kl_divergence(clean, adversarial) * missed
        return boosted_cross_entropy(adversarial, shares) + self.weight * divergence, adversarial


def _shares(y: Tensor, logits: Tensor, *, smoothing: float) -> Tensor:
    """Return labels as smoothed shares of the classes, (N, K) float32."""
    if not y.is_floating_point():
        y = torch.zeros_like(logits, dtype=torch.float32).scatter(1, y.long()[:, None], 1.0)
    return (1 - smoothing) * y + smoothing / logits.shape[1]


def boosted_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    """Return -log p_y - log(1 - max_{k != y} p_k) of each row, (N,) float32.

    logits: (N, K), K >= 2; shares: (N, K), of the classes in the label y.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    largest = log_p.topk(2, dim=1).indices
    first = largest[:, :1]
    second = largest[:, 1:]
    is_first = shares.gather(1, first)[:, 0]  # of a hard label 0 or 1: then its rival is the second
    rival = (1 - is_first) * _log_of_others(log_p, first)
    rival = rival + is_first * _log_of_others(log_p, second)
    return -(shares * log_p).sum(dim=1) - rival


def _log_of_others(log_p: Tensor, one: Tensor) -> Tensor:
    """Return log(1 - p) of one class of each row, without a difference that rounds to 0."""
    return log_p.scatter(1, one, float("-inf")).logsumexp(dim=1)


def kl_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Return KL(softmax(clean) || softmax(adversarial)) of each row, (N,) float32.

    clean, adversarial: (N, K) logits.
    """
    ours = F.log_softmax(clean.float(), dim=1)
    theirs = F.log_softmax(adversarial.float(), dim=1)
    return (ours.exp() * (ours - theirs)).sum(dim=1)


def make_objective(settings: TrainingSettings) -> Objective:
    """Build the objective that the settings name."""
    if settings.objective == "trades":
        return Trades(settings.trades_beta, settings.trades_noise, settings.label_smoothing)
    if settings.objective == "mart":
        return Mart(weight=settings.mart_weight, label_smoothing=settings.label_smoothing)
    return AdversarialCrossEntropy(settings.label_smoothing)
