"""A surrogate in compiled kernels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.attacks.base import Model
from sat_ray.models.copying import copied
from sat_ray.models.parity import logits_and_gradient, require_agreement
from sat_ray.utils.compile import compiled, forget_graphs

MOST_KEPT = 16  # compiled copies of one process: as many architectures, activations and alphas


@dataclass
class _Kernels:
    """What was compiled for one kind of copy.

    module: the copy that was compiled; holds: the copy whose weights are in it.
    """

    module: nn.Module
    forward: Model
    holds: nn.Module

    @classmethod
    def compile(cls, plain: nn.Module) -> "_Kernels":
        """Prepare a copy that is compiled at its first call."""
        module = copied(plain)
        return cls(module, compiled(module), plain)

    @torch.no_grad()
    def load(self, plain: nn.Module) -> None:
        """Take over the weights and buffers of another copy of the same layers."""
        if self.holds is not plain:
            ours = _tensors(self.module).values()
            theirs = _tensors(plain).values()
            for one, other in zip(ours, theirs, strict=True):
                one.copy_(other)
            self.holds = plain


_KEPT: dict[Any, _Kernels] = {}


class CompiledSurrogate:
    """A copy in compiled kernels, which copies of the same layers share.

    Compiling takes a minute, other weights take nothing. Numbers decide whether kernels fit, not
    the look of the layers alone: the logits and gradients at the first images of a copy.
    """

    def __init__(self, plain: nn.Module, model: Model, *, precision: str) -> None:
        self.plain = plain
        self.model = model
        self.precision = precision
        self.kernels: _Kernels | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernels is None:
            self.kernels = self._fitting(x.detach())
        self.kernels.load(self.plain)
        return self.kernels.forward(x)

    def _fitting(self, x: Tensor) -> _Kernels:
        """Return kernels that give the numbers of the plain copy at x.

        They are those of an earlier copy of the same layers where these fit, else new ones.
        """
        layers = (self.precision, *_layers(self.plain))
        if layers in _KEPT:
            try:
                return self._checked(_KEPT[layers], x)
            except ArithmeticError:
                del _KEPT[layers]
        if len(_KEPT) == MOST_KEPT:
            _KEPT.clear()
            forget_graphs()
        _KEPT[layers] = self._checked(_Kernels.compile(self.plain), x)
        return _KEPT[layers]

    def _checked(self, kernels: _Kernels, x: Tensor) -> _Kernels:
        kernels.load(self.plain)
        ours = logits_and_gradient(kernels.forward, x)
        theirs = logits_and_gradient(self.plain, x)
        if not all(bool(values.isfinite().all()) for values in theirs.values()):
            return kernels  # there is nothing to compare; calibration refuses such numbers
        with torch.autocast(x.device.type, enabled=False):
            exact = logits_and_gradient(self.model, x)
        require_agreement(
            ours,
            theirs,
            exact,
            what="model that is attacked",
            precision=self.precision,
            asked=f"gradients in {self.precision}",
        )
        return kernels


def _layers(module: nn.Module) -> tuple[Any, ...]:
    """Describe what kernels are compiled for: all of a copy but the values of its tensors."""
    tensors = tuple(
        (name, tensor.shape, tensor.dtype, tensor.device)
        for name, tensor in _tensors(module).items()
    )
    code = tuple(getattr(part, "code", "") for part in module.modules())
    return (type(module).__qualname__, code, repr(module), tensors)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
