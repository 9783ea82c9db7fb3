"""A model's fast copy, to take gradients of: its logits are near the model's and never stand for them.

What counts is said by the model itself, in float32 (`sat_ray.rescoring`). A copy has BatchNorm folded into its convolutions; it computes in
bfloat16 (half the bytes, on hardware that has it several times the rate), or through kernels that torch.compile makes, or both.

Entries of a bfloat16 gradient that are far below the others are rounding alone, and so are their signs. They are set to 0. Otherwise such
pixels move at random for ever; without them a point soon repeats, and an image that repeats needs no more steps.
"""

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from sat_ray.activations import Activation
from sat_ray.agreement import logits_and_gradient, require_agreement
from sat_ray.attacks.base import Model
from sat_ray.attacks.spec import GRADIENTS
from sat_ray.compilation import check_compiler, compiled, forget_graphs
from sat_ray.precision import autocast

COMPILED = tuple(name for name in GRADIENTS if name.endswith("-compiled"))
MOST_KEPT = 16  # compiled copies of one process: as many architectures, activations and alphas
UNKNOWN = 64  # an entry below a 64th of its image's mean: bfloat16 keeps 8 bits, and a pass rounds some dozen times
_WEIGHTY = (nn.Conv1d, nn.Conv2d, nn.Linear)


def pays(device: torch.device) -> bool:
    """Tell whether bfloat16 is faster than float32 there: a GPU that has it, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_gradient(gradient: str, device: torch.device, *, field: str) -> None:
    """Raise ValueError where this machine cannot compile what an attack's gradients ask for."""
    if gradient in COMPILED:
        check_compiler(device, asked=f"{field} is {gradient}", instead=gradient.removesuffix("-compiled"))


@dataclass(frozen=True)
class FastCopy:
    """A function [0, 1] float32 images (N, C, H, W) -> float32 logits (N, K). fixed_rows: another N would be compiled anew."""

    forward: Model
    precision: str
    device: torch.device
    fixed_rows: bool

    def __call__(self, x: Tensor) -> Tensor:
        if self.precision == "bf16":
            x = _KnownSigns.apply(x)
        with autocast(self.precision, self.device):
            return self.forward(x).float()


class _KnownSigns(torch.autograd.Function):
    """Pass x on, and of its gradient the entries whose sign is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return known_signs(gradients[0])


def known_signs(gradient: Tensor) -> Tensor:
    """Return a gradient (N, C, H, W) with 0 for entries smaller than a 64th of the mean of their image's entries, signs left out.

    NaN and infinity stay, so that whoever steps along them notices.
    The mean is that of whole numbers, 2^20 for the largest entry: their sum is the same in any order, in any kernel and batch.
    """
    size = gradient.detach().abs().flatten(1)
    whole = (size / size.amax(dim=1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny) * 2**20).to(torch.int64)
    unknown = (UNKNOWN * whole.shape[1] * whole < whole.sum(dim=1, keepdim=True)) & size.isfinite()
    return gradient.masked_fill(unknown.view_as(gradient), 0)


def fast_copy(model: Model, *, gradient: str, device: torch.device) -> FastCopy:
    """Return the model in other kernels.

    model: in inference mode on `device`; it is not touched. gradient: of an attack, not float32. Of a module, BatchNorm is folded into the
    convolutions before it where the module can be traced and, for bf16, the weights of convolutions and linear layers are rounded once; a
    plain function runs under autocast and is never compiled. A compiled copy is compared at its first call with the same copy in torch's
    own kernels (ArithmeticError).
    """
    precision = "bf16" if gradient.startswith("bf16") else "float32"
    copied = _copied(model, precision=precision) if isinstance(model, nn.Module) else model
    forward: Model = copied
    if gradient in COMPILED and isinstance(copied, nn.Module):
        forward = _Compiled(copied, model, precision=precision)
    return FastCopy(forward, precision, device, fixed_rows=forward is not copied)


def _copied(model: nn.Module, *, precision: str) -> nn.Module:
    copied = _folded(copy.deepcopy(model)).eval()
    if precision == "bf16":
        for module in copied.modules():
            if isinstance(module, _WEIGHTY):
                module.to(torch.bfloat16)
    return copied.requires_grad_(False)


class _Tracer(fx.Tracer):
    """Trace through containers; an activation, whose backward pass may be its own, stays one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Activation) or super().is_leaf_module(m, module_qualified_name)


def _folded(model: nn.Module) -> nn.Module:
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        if _calls_twice(traced, (*_WEIGHTY, nn.BatchNorm2d)):  # would be folded twice
            return model
        folded: nn.Module = fuse(traced, inplace=True, no_trace=True)
    except Exception as reason:  # a model that cannot be traced (data-dependent control flow) is slower, not wrong
        logging.getLogger(__name__).info("BatchNorm is not folded into %s: %s", type(model).__name__, reason)
        return model
    return folded


def _calls_twice(traced: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Say whether a layer of these kinds is called in more than one place."""
    modules = dict(traced.named_modules())
    called = [modules[str(node.target)] for node in traced.graph.nodes if node.op == "call_module"]
    weighty = [id(module) for module in called if isinstance(module, kinds)]
    return len(set(weighty)) < len(weighty)


@dataclass
class _Kernels:
    """What was compiled for one kind of copy. module: the copy that was compiled; holds: whose weights are in it."""

    module: nn.Module
    forward: Model
    holds: nn.Module

    @classmethod
    def compile(cls, plain: nn.Module) -> "_Kernels":
        """Compile a copy, at its first call."""
        module = copy.deepcopy(plain)
        return cls(module, compiled(module), plain)

    @torch.no_grad()
    def load(self, plain: nn.Module) -> None:
        """Take over the weights and buffers of another copy of the same layers."""
        if self.holds is not plain:
            for ours, theirs in zip(_tensors(self.module).values(), _tensors(plain).values(), strict=True):
                ours.copy_(theirs)
            self.holds = plain


_KEPT: dict[Any, _Kernels] = {}


class _Compiled:
    """A copy through compiled kernels, which copies of the same layers share: compiling takes a minute, other weights take nothing.

    Whether kernels fit is decided by numbers, never by the look of the layers alone: by logits and gradients at the first images of a copy.
    """

    def __init__(self, plain: nn.Module, model: Model, *, precision: str) -> None:
        self.plain, self.model, self.precision = plain, model, precision
        self.kernels: _Kernels | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.kernels is None:
            self.kernels = self._fitting(x.detach())
        self.kernels.load(self.plain)
        return self.kernels.forward(x)

    def _fitting(self, x: Tensor) -> _Kernels:
        """Return kernels that agree with the plain copy at x: those of a copy of the same layers, else new ones."""
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
        ours, theirs = (logits_and_gradient(forward, x) for forward in (kernels.forward, self.plain))
        with torch.autocast(x.device.type, enabled=False):
            exact = logits_and_gradient(self.model, x)
        require_agreement(ours, theirs, exact, what="model that is attacked", precision=self.precision, asked="compiled gradients")
        return kernels


def _layers(module: nn.Module) -> tuple[Any, ...]:
    """Describe what kernels are compiled for: everything of a copy but the values of its tensors."""
    tensors = tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in _tensors(module).items())
    return (type(module).__qualname__, getattr(module, "code", ""), repr(module), tensors)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
