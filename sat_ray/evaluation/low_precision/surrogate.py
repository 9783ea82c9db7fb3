"""A model's fast copy, to take gradients of: its logits are near the model's and never stand for them.

What counts is said by the model itself, in float32 (`sat_ray.evaluation.low_precision.verification`). A copy has
BatchNorm folded into its convolutions; it computes in
16 bits (half the bytes, on hardware that has them several times the rate), or through kernels that torch.compile makes, or both. bfloat16
has float32's range and 8 bits of precision; float16 has 11, so it is near float32 eight times, and a range that a few networks exceed.

Entries of a 16-bit gradient that are far below the others are rounding alone, and so are their signs. They are set to 0. Otherwise such
pixels move at random for ever; without them a point soon repeats, and an image that repeats needs no more steps.
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
from sat_ray.utils.precision import SHORT, autocast

COMPILED = ("fp16",)
UNKNOWN = {
    "bf16": 64,
    "fp16": 512,
}  # an entry below a 64th of its image's mean: bfloat16 keeps 8 bits, and a pass rounds some dozen times
LARGEST = (
    2**4
)  # of the derivatives by an image's logits, in float16: its gradients have room for 65,504 above it and for 2^-24 below


def pays(device: torch.device) -> bool:
    """Tell whether bfloat16 is faster than float32 there: a GPU that has it, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_available() and bool(
            torch.cuda.is_bf16_supported(including_emulation=False)
        )
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def emulated(gradient: str, device: torch.device) -> bool:
    """Say whether a device has no arithmetic for such gradients and imitates it, at several times the cost of float32."""
    return device.type != "cuda" if gradient == "fp16" else gradient == "bf16" and not pays(device)


def check_gradient(gradient: str, device: torch.device, *, field: str) -> None:
    """Raise ValueError where this machine cannot compile what an attack's gradients ask for."""
    if gradient in COMPILED:
        check_compiler(device, asked=f"{field} is {gradient}", instead="bf16 or float32")


def flies_again(gradient: str) -> bool:
    """Say whether close survivors of an attack on such a copy are attacked again in float32.

    bfloat16's paths differ from float32's often enough; of float16 it changed no verdict.
    """
    return gradient == "bf16"


@dataclass(frozen=True)
class FastCopy:
    """A function [0, 1] float32 images (N, C, H, W) -> float32 logits (N, K). fixed_rows: another N would be compiled anew."""

    forward: Model
    precision: str
    device: torch.device
    fixed_rows: bool

    def __call__(self, x: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            logits = self.forward(x).float()
        return _Scaled.apply(logits) if self.precision == "fp16" else logits


class _WithKnownSigns(nn.Module):
    """A model whose gradients at the images are those of `known_signs`; as a part of it, so that one compiler sees both."""

    def __init__(self, model: Model, *, unknown: int) -> None:
        super().__init__()
        self.model, self.unknown = model, unknown

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(_KnownSigns.apply(x, self.unknown))
        return logits


class _KnownSigns(torch.autograd.Function):
    """Pass x on, and of its gradient the entries whose sign is known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, unknown: int) -> Tensor:
        ctx.unknown = unknown
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return known_signs(gradients[0], unknown=ctx.unknown), None


def known_signs(gradient: Tensor, *, unknown: int) -> Tensor:
    """Return a gradient (N, C, H, W) with 0 for entries `unknown` times smaller than the mean of their image's entries, signs left out.

    NaN and infinity stay, so that whoever steps along them notices.
    The mean is that of whole numbers, up to 2^20 for the largest entry: their sum is the same in any order, in any kernel and batch.
    """
    size = gradient.detach().abs().flatten(1)
    exponent = torch.frexp(size.amax(dim=1, keepdim=True)).exponent
    unit = torch.exp2(
        (20 - exponent).clamp_max(126).to(size.dtype)
    )  # a power of two: nothing is rounded by it
    total = (size * unit).to(torch.int32).sum(dim=1, keepdim=True)
    least = -(-total // (unknown * size.shape[1])).to(size.dtype) / unit
    return gradient.masked_fill((size < least).view_as(gradient), 0)


class _Scaled(torch.autograd.Function):
    """Pass logits on, and of their gradient each image's direction, at a length that float16 can carry through a network."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return scaled(gradients[0])


def scaled(gradient: Tensor) -> Tensor:
    """Return a gradient (N, K) with every row times the power of two, which rounds nothing, that brings its largest entry near LARGEST.

    Attacks use directions alone, so a loss that has nearly vanished need not vanish in float16. A row of 0 stays 0.
    """
    exponent = torch.frexp(gradient.abs().amax(dim=1, keepdim=True)).exponent.clamp_min(-100)
    return gradient * torch.exp2(-exponent.to(gradient.dtype)) * LARGEST


def fast_copy(model: Model, *, gradient: str, device: torch.device) -> FastCopy:
    """Return the model in other kernels.

    model: in inference mode on `device`; it is not touched. gradient: of an attack, not float32. Of a module, BatchNorm is folded into the
    convolutions before it where the module can be traced and, for 16 bits, the weights of convolutions and linear layers are rounded once;
    a plain function runs under autocast and is never compiled. A compiled copy is compared at its first call with the same copy in torch's
    own kernels (ArithmeticError).
    """
    short = _short(model, precision=gradient) if isinstance(model, nn.Module) else model
    plain = _WithKnownSigns(short, unknown=UNKNOWN[gradient])
    forward: Model = plain
    if gradient in COMPILED and isinstance(model, nn.Module):
        forward = CompiledSurrogate(plain, model, precision=gradient)
    return FastCopy(forward, gradient, device, fixed_rows=forward is not plain)


def _short(model: nn.Module, *, precision: str) -> nn.Module:
    dtype = SHORT[precision]
    short = folded(copied(model), dtype=dtype).eval()
    for module in short.modules():
        if isinstance(module, WEIGHTY):
            module.to(dtype)
    return short.requires_grad_(False)
