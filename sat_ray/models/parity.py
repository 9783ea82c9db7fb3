"""Numerical parity of two ways to compute one model, in logits and in gradients."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sat_ray.attacks.base import Model

ALLOWED = {
    "float32": 0.01,
    "bf16": 0.1,
    "fp16": 0.02,
}  # difference from float32, in units of the length of what is compared
MORE = 2.0  # times the difference that torch's own kernels have
HALF = 0.5  # more or less length than with torch's own kernels, however far both are from float32
FEWEST = 64  # entries of a tensor that is judged by itself: of fewer, chance decides too much
NOTICED = 1e-3  # an entry that matters is a thousandth of the typical one, or more


def logits_and_gradient(forward: "Model", x: Tensor) -> dict[str, Tensor]:
    """Return logits (N, K) float32 and `gradient`, shaped as x.

    The gradient is of half the squared length of the logits, which no saturated softmax makes
    vanish.

    Where the logits are cut off from x the gradient is 0.
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        logits = forward(point).float()
        gradient = (
            torch.autograd.grad(logits.square().sum() / 2, point, allow_unused=True)[0]
            if logits.requires_grad
            else None
        )
    return {
        "logits": logits.detach(),
        "gradient": torch.zeros_like(x) if gradient is None else gradient,
    }


def gradients_by_name(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return gradients, flat and in float32, those of few entries joined."""
    large: dict[str, Tensor] = {}
    small: list[Tensor] = []
    for name, gradient in named:
        flat = gradient.detach().float().flatten()
        if len(flat) < FEWEST:
            small.append(flat)
        else:
            large[f"gradient of {name}"] = flat
    return large | ({"gradients of small tensors": torch.cat(small)} if small else {})


def require_agreement(
    compiled: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    *,
    what: str,
    precision: str,
    asked: str,
) -> None:
    """Raise ArithmeticError where a compiled module differs from the plain one by more than
    rounding.

    compiled, plain: in `precision`; exact: of the plain module in float32, of which 16 bits may be
    far. In training, rounding grows from the last layer to the first: at the first weights of an
    untrained ResNet-50 the gradients that torch's own kernels give in bf16 are further from float32
    than 0 is. Compiled kernels may be as far in another direction, but neither much farther, nor
    much longer or shorter. asked: the setting to do without.
    """
    gradients = [tensor for name, tensor in exact.items() if name != "logits"]
    typical = (
        torch.cat([tensor.double().flatten() for tensor in gradients]).square().mean().sqrt()
        if gradients
        else 0.0
    )
    for name, true in exact.items():
        least = (
            1e-12
            if name == "logits"
            else max(1e-12, NOTICED * float(typical) * true.numel() ** 0.5)
        )
        one, other = compiled[name], plain[name]
        usual, usual_part = _apart(other, true, least=least)
        distance, part = _apart(one, true, least=least)
        length = abs(float(one.double().norm() - other.double().norm())) / max(
            float(other.double().norm()), least
        )
        rules = (
            ("differs by", distance, ALLOWED[precision] + MORE * usual),
            (
                "is wrong in length by",
                part,
                ALLOWED[precision] + MORE * max(usual_part, usual**2 / 2),
            ),
            ("is longer or shorter by", length, HALF),
        )
        for kind, found, allowed in rules:
            if not found <= allowed:
                raise ArithmeticError(
                    f"{asked}: {name} of the compiled {what} {kind} {100 * found:.3g} % from what "
                    f"torch's own kernels compute, at most {100 * allowed:.3g} % is accepted; do "
                    f"without {asked}, and report it with the versions of torch and of the compiler"
                )


def _apart(found: Tensor, exact: Tensor, *, least: float) -> tuple[float, float]:
    """Return the length of the difference, and of its part along the exact values.

    Both are in units of the length of the exact values.
    """
    found, exact = found.double().flatten(), exact.double().flatten()
    length = exact.norm().clamp_min(least)
    return float((found - exact).norm() / length), abs(
        float(((found - exact) * exact).sum() / length.square())
    )
