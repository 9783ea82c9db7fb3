"""Whether two ways to compute one model agree, in logits and in gradients at the images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sat_ray.attacks.base import Model

ALLOWED = {"float32": 0.01, "bf16": 0.1}  # difference from float32, in units of the length of what is compared
MORE = 1.5  # times the difference that torch's own kernels have


def logits_and_gradient(forward: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) float32 and the gradient, shaped as x, of half their squared length, which no saturated softmax makes vanish.

    Where the logits are cut off from x the gradient is 0.
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        logits = forward(point).float()
        gradient = torch.autograd.grad(logits.square().sum() / 2, point, allow_unused=True)[0] if logits.requires_grad else None
    return logits.detach(), torch.zeros_like(x) if gradient is None else gradient


def require_agreement(
    compiled: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], *, what: str, precision: str, asked: str
) -> None:
    """Raise ArithmeticError where logits or gradients of a compiled module are not those of the plain one, up to rounding.

    compiled, plain: logits and gradients in `precision`; exact: those of the plain module in float32, of which bf16 may be far (in training
    by half the gradient's length, in a network as deep as ResNet-50). Then compiled kernels may be as far in another direction, but neither
    much farther nor, along the exact gradient, much longer or shorter. asked: the setting to do without.
    """
    for name, one, other, true in zip(("logits", "gradients"), compiled, plain, exact, strict=True):
        (distance, length), (usual, usual_length) = _apart(one, true), _apart(other, true)
        for kind, found, normal in (("differ by", distance, usual), ("are wrong in length by", length, usual_length)):
            allowed = ALLOWED[precision] + MORE * normal
            if not found <= allowed:
                raise ArithmeticError(
                    f"{asked}: {name} of the compiled {what} {kind} {100 * found:.3g} % from those in float32, allowed: "
                    f"{100 * allowed:.3g} %; do without {asked}, and report it with the versions of torch and of the compiler"
                )


def _apart(found: Tensor, exact: Tensor) -> tuple[float, float]:
    """Return the length of the difference, and how wrong the part along the exact values is, both in units of their length."""
    found, exact = found.double().flatten(), exact.double().flatten()
    length = exact.norm().clamp_min(1e-12)
    return float((found - exact).norm() / length), abs(float(((found - exact) * exact).sum() / length.square()))
