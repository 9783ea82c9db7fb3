"""Precision of passes: float32, or bfloat16 where autocast allows it.

Gradients of an attack may also be float16.

Images, perturbations, weights and losses stay float32 either way; so do validation and every
verdict.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from sat_ray.utils.names import check_name

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bf16")  # of training
_BEFORE_BF16 = re.compile(
    r"\b(K80|M60|P4|P40|P100|V100|T4)\b", re.IGNORECASE
)  # GPUs of clouds, older than Ampere


def check_precision(precision: str, device: "torch.device") -> None:
    """Raise ValueError where a device cannot compute in this precision.

    On a CPU bf16 is right but may be slow.
    """
    import torch

    check_name(precision, PRECISIONS, field="training.precision")
    if precision == "float32" or device.type == "cpu":
        return
    if device.type != "cuda" or not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ValueError(
            f"training.precision must be float32 for {name}, got bf16, which it does not support"
        )


def check_accelerator(precision: str, accelerator: str) -> None:
    """Raise ValueError where the name of a GPU shows that it cannot compute in this precision.

    So it is known before any node is requested.
    """
    if precision == "bf16" and _BEFORE_BF16.search(accelerator):
        raise ValueError(
            f"training.precision must be float32 for resources.accelerator {accelerator}, got "
            "bf16, which it does not support"
        )


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 exactly, with the same bits every time; usable as a decorator.

    On a GPU, torch would let convolutions round their factors to TF32's 10 bits and choose kernels
    that add up in any order. What the caller had set is put back.
    """
    import torch

    cudnn, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


def short_dtype(precision: str) -> "torch.dtype | None":
    """Return the dtype of bf16 and fp16; None for float32."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def autocast(precision: str, device: "torch.device") -> AbstractContextManager[object]:
    """Return the context in which models are called."""
    if precision == "float32":
        return nullcontext()
    import torch

    return torch.autocast(device.type, dtype=short_dtype(precision))
