"""Whether two ways to compute one model agree, in logits and in gradients at the images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sat_ray.attacks.base import Model

ALLOWED = {"float32": 0.01, "bf16": 0.25}  # difference, in units of the length of what is compared


def logits_and_gradient(forward: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K) float32 and the gradient, shaped as x, of half their squared length, which no saturated softmax makes vanish.

    Where the logits are cut off from x the gradient is 0.
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        logits = forward(point).float()
        gradient = torch.autograd.grad(logits.square().sum() / 2, point, allow_unused=True)[0] if logits.requires_grad else None
    return logits.detach(), torch.zeros_like(x) if gradient is None else gradient


def require_agreement(compiled: Sequence[Tensor], plain: Sequence[Tensor], *, what: str, precision: str, asked: str) -> None:
    """Raise ArithmeticError where logits or gradients of a compiled module are not those of the plain one, up to rounding.

    asked: the setting to do without.
    """
    for name, one, other in zip(("logits", "gradients"), compiled, plain, strict=True):
        difference, allowed = float((one - other).norm() / other.norm().clamp_min(1e-12)), ALLOWED[precision]
        if not difference <= allowed:
            raise ArithmeticError(
                f"{asked}: {name} of the compiled {what} differ by {100 * difference:.3g} % from those of the plain one, allowed: "
                f"{100 * allowed:g} %; do without {asked}, and report it with the versions of torch and of the compiler"
            )
