"""The surrogate: a copy of a model in 16 bits, from which attacks take gradients.

Its logits are near the model's and never replace them: the model itself decides in float32 what is
broken (`sat_ray.evaluation.low_precision.verification`). BatchNorm is folded into the convolutions
of the copy.

bf16    bfloat16 in torch's own kernels; 8 bits of precision and float32's range
fp16    float16 in kernels that torch.compile makes; 11 bits, so eight times nearer to float32, and
        a range that a few networks exceed

Entries of a 16-bit gradient that are far below the others are rounding alone, and so are their
signs. They are set to 0. Otherwise such pixels move at random for ever; without them a point soon
repeats, and an image that repeats needs no more steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.attacks.base import Model
from sat_ray.evaluation.low_precision.compiled_surrogate import CompiledSurrogate
from sat_ray.models import folded
from sat_ray.models.batchnorm_folding import WEIGHTY
from sat_ray.models.copying import copied
from sat_ray.utils.compile import check_compiler
from sat_ray.utils.precision import autocast, short_dtype

COMPILED = ("fp16",)
# The sign of an entry is unknown where it is so many times smaller than the mean of its image:
# bfloat16 keeps 8 bits, float16 keeps 11, and a pass rounds some dozen times.
UNKNOWN = {"bf16": 64, "fp16": 512}
# Of the derivatives by an image's logits, in float16: the gradients of the image then have room
# for 65,504 above it and for 2^-24 below.
LARGEST = 2**4


def pays(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than float32 on a device.

    True for a GPU that has it, and for a CPU with AVX512-BF16 or AMX.
    """
    if device.type == "cuda":
        return torch.cuda.is_available() and bool(
            torch.cuda.is_bf16_supported(including_emulation=False)
        )
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def emulated(gradient: str, device: torch.device) -> bool:
    """Return whether a device emulates the arithmetic, at several times the cost of float32."""
    if gradient == "fp16":
        return device.type != "cuda"
    return gradient == "bf16" and not pays(device)


def check_gradient(gradient: str, device: torch.device, *, field: str) -> None:
    """Raise ValueError where this machine cannot compile the surrogate of an attack."""
    if gradient in COMPILED:
        check_compiler(device, asked=f"{field} is {gradient}", instead="bf16 or float32")


def repeats_close_survivors(gradient: str) -> bool:
    """Return whether close survivors of an attack are attacked again with float32 gradients.

    The paths of bfloat16 differ from those of float32 often enough; with float16 the second attack
    changed no verdict (docs/explanation/low-precision.md).
    """
    return gradient == "bf16"


@dataclass(frozen=True)
class Surrogate:
    """Map [0, 1] float32 images (N, C, H, W) to float32 logits (N, K) in low precision.

    fixed_rows: another N would be compiled anew.
    """

    forward: Model
    precision: str
    device: torch.device
    fixed_rows: bool

    def __call__(self, x: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            logits = self.forward(x).float()
        return _Scaled.apply(logits) if self.precision == "fp16" else logits


def make_surrogate(model: Model, *, gradient: str, device: torch.device) -> Surrogate:
    """Return the surrogate of a model, which is not changed.

    model: in inference mode on `device`; gradient: bf16 or fp16. In the copy of a module, BatchNorm
    is folded into the convolutions before it where the module can be traced, and the weights of
    convolutions and linear layers are rounded once. A plain function runs under autocast and is
    never compiled. A compiled surrogate is compared at its first call with the same copy in torch's
    own kernels (ArithmeticError).
    """
    short = _short(model, precision=gradient) if isinstance(model, nn.Module) else model
    plain = _WithKnownSigns(short, unknown=UNKNOWN[gradient])
    forward: Model = plain
    if gradient in COMPILED and isinstance(model, nn.Module):
        forward = CompiledSurrogate(plain, model, precision=gradient)
    return Surrogate(forward, gradient, device, fixed_rows=forward is not plain)


def _short(model: nn.Module, *, precision: str) -> nn.Module:
    dtype = short_dtype(precision)
    short = folded(copied(model), dtype=dtype).eval()
    for module in short.modules():
        if isinstance(module, WEIGHTY):
            module.to(dtype)
    return short.requires_grad_(False)


class _WithKnownSigns(nn.Module):
    """A model whose gradients at the images are those of `known_signs`.

    The operation is part of the model, so that both are compiled together.
    """

    def __init__(self, model: Model, *, unknown: int) -> None:
        super().__init__()
        self.model = model
        self.unknown = unknown

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(_KnownSigns.apply(x, self.unknown))
        return logits


class _KnownSigns(torch.autograd.Function):
    """Return x unchanged, and in the backward pass the entries whose sign is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unknown: int) -> Tensor:
        ctx.unknown = unknown
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return known_signs(gradients[0], unknown=ctx.unknown), None


def known_signs(gradient: Tensor, *, unknown: int) -> Tensor:
    """Return a gradient (N, C, H, W) with 0 for entries whose sign is rounding alone.

    These are `unknown` times smaller than the mean of the absolute entries of their image. NaN and
    infinity stay, so that a later check finds them. The mean is that of integers, up to 2^20 for
    the largest entry: their sum is the same in any order, in any kernel and batch.
    """
    size = gradient.detach().abs().flatten(1)
    exponent = torch.frexp(size.amax(dim=1, keepdim=True)).exponent
    # a power of two: it rounds nothing
    unit = torch.exp2((20 - exponent).clamp_max(126).to(size.dtype))
    total = (size * unit).to(torch.int32).sum(dim=1, keepdim=True)
    least = -(-total // (unknown * size.shape[1])).to(size.dtype) / unit
    return gradient.masked_fill((size < least).view_as(gradient), 0)


class _Scaled(torch.autograd.Function):
    """Return logits unchanged, and in the backward pass the gradient of `scaled`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return scaled(gradients[0])


def scaled(gradient: Tensor) -> Tensor:
    """Return a gradient (N, K) whose rows have a length that float16 can carry through a network.

    Every row is multiplied by the power of two, which rounds nothing, that brings its largest entry
    near LARGEST. Attacks use directions alone, so a loss that has nearly vanished need not vanish
    in float16. A row of 0 stays 0.
    """
    exponent = torch.frexp(gradient.abs().amax(dim=1, keepdim=True)).exponent.clamp_min(-100)
    return gradient * torch.exp2(-exponent.to(gradient.dtype)) * LARGEST
