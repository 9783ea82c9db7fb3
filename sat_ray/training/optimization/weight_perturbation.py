"""Adversarial weight perturbation, AWP (Wu, Xia, Wang 2020, arXiv 2004.05884).

    v_l   =  gamma ||w_l|| g_l / ||g_l||            g = grad_w L(w),  L: the loss of the update
    step  along  grad_w L(w + v),  from w

w_l: the weights of one convolution or linear layer; norms and biases are not perturbed. The weights
go back to w bit for bit before the optimizer's step, so weight decay and momentum act on w itself.
(The authors' code takes the step at w + v and then subtracts v, which differs by the decay of v.)

g is the mean over the global batch, the same in every process, and so is v.
"""

import torch
from torch import Tensor, nn

from sat_ray.training.optimization.optimizer import decaying_weights

_TINY = 1e-20  # keeps a layer with a gradient of 0 where it is


class WeightPerturbation:
    """Move the weights of a model along their gradients, and back. gamma > 0."""

    def __init__(self, model: nn.Module, *, gamma: float) -> None:
        self.gamma = gamma
        self.weights = decaying_weights(model)
        self.before: list[Tensor] = []

    @torch.no_grad()
    def add(self) -> None:
        """Perturb the weights; the gradients of the loss must be at them."""
        self.before = [weight.detach().clone() for weight in self.weights]
        for weight in self.weights:
            if weight.grad is not None:
                length = self.gamma * weight.norm() / weight.grad.norm().clamp_min(_TINY)
                weight.add_(length * weight.grad)

    @torch.no_grad()
    def remove(self) -> None:
        """Give every weight the value that it had before `add`."""
        for weight, value in zip(self.weights, self.before, strict=True):
            weight.copy_(value)
        self.before = []
