"""Models as files that need no code of this package: .pt2 (torch.export) and ONNX.

Each file is compared with the model that it was made from.

For .pt2, activations with a hand-written backward pass are rewritten so that the export keeps it.
ONNX has no gradients.
"""

import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sat_ray.activations.module import Activation
from sat_ray.models.copying import copied
from sat_ray.models.pt2.archive import checked_archive
from sat_ray.utils.import_string import first_line

FORMATS = ("pt2", "onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 5)  # sizes of the calls that parity is checked with; the export itself sees another
TOLERANCE = 1e-4  # largest difference of logits, in units of the largest logit (at least 1)
_HAND_WRITTEN = (
    "smoothrelu",
    "smoothrelu_learned",
    "relu_smooth_backward",
)  # backward passes that torch.export would drop


class _Traceable(nn.Module):
    """An activation whose hand-written backward pass survives torch.export to the last bit.

    It computes the value plus a zero that has this gradient.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.inner = activation

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.inner.beta.detach().square() if self.inner.learned else self.inner.alpha
        assert alpha is not None
        if self.inner.activation == "relu_smooth_backward":
            carrier = x * torch.sigmoid(alpha * x).detach()
        else:
            u = (alpha * x.clamp_min(0)).detach()
            carrier = x / (1 + u) * u  # in this order its gradient rounds as (grad * u) / (1 + u)
        value: Tensor = self.inner(x).detach() + (carrier - carrier.detach())
        return value


def exportable(model: nn.Module) -> nn.Module:
    """Copy a model to the CPU, in inference mode, with activations that export as they are."""
    clone = copied(model).cpu().eval()
    for module in list(clone.modules()):
        for name, child in module.named_children():
            if isinstance(child, Activation) and child.activation in _HAND_WRITTEN:
                setattr(module, name, _Traceable(child))
    return clone


@dataclass(frozen=True)
class Parity:
    """Largest differences between an exported model and the model.

    logits: of the logits; of .pt2 also of gradients at the images.
    """

    logits: float
    gradient: float | None
    bound: float

    def __str__(self) -> str:
        gradient = "" if self.gradient is None else f", of input gradients {self.gradient:.1e}"
        batches = " and ".join(map(str, BATCHES))
        return (
            f"batches of {batches}: largest difference of logits {self.logits:.1e}{gradient}, "
            f"at most {self.bound:.1e}"
        )


def export_model(model: nn.Module, *, shape: Sequence[int], kind: str) -> tuple[bytes, Parity]:
    """Return a model as the bytes of a .pt2 or ONNX file, and its parity with the model.

    The file takes any number of [0, 1] images.

    shape: (C, H, W) of the images; kind: one of `FORMATS`. Raises ValueError where ONNX is not
    installed, ArithmeticError where the export computes something else.
    """
    data, run = {"pt2": _pt2, "onnx": _onnx}[kind](model, shape)
    return data, _parity(model, run, shape=shape, gradients=kind == "pt2")


def _example(count: int, shape: Sequence[int]) -> Tensor:
    return torch.rand(
        count, *shape, generator=torch.Generator().manual_seed(count), dtype=torch.float32
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch.export logs where it fails: pages of its graph; the error says why."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


class NotExportedError(ValueError):
    """A network cannot be written as a file of torch.export."""


def check_exportable(model: nn.Module, shape: Sequence[int], *, what: str) -> None:
    """Raise NotExportedError, in one line, where torch.export cannot trace a model.

    shape: (C, H, W) of the images; what: the model's name for the message.
    """
    _program(model, shape, what=what)


def _program(
    model: nn.Module, shape: Sequence[int], *, what: str = "the model"
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        plain = exportable(model).requires_grad_(False)
        with quiet():
            return torch.export.export(plain, (_example(2, shape),), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export has many kinds of its own
        raise NotExportedError(f"{what} cannot be exported ({first_line(error)})") from error


def _pt2(model: nn.Module, shape: Sequence[int]) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    program = _program(model, shape)
    stream = io.BytesIO()
    torch.export.save(program, stream)
    again = torch.export.load(
        io.BytesIO(checked_archive(stream.getvalue()))
    ).module()  # as an evaluation loads it
    return stream.getvalue(), again


def _onnx(model: nn.Module, shape: Sequence[int]) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"format onnx needs {', '.join(missing)}; install them: pip install 'sat_ray[onnx]', "
            "or choose pt2"
        )
    import onnxruntime

    batch = torch.export.Dim("batch", min=1)
    plain = copied(model).cpu().eval().requires_grad_(False)
    settings: dict[str, Any] = {"dynamic_shapes": ({0: batch},), "dynamo": True, "verbose": False}
    program = torch.onnx.export(
        plain, (_example(2, shape),), input_names=["images"], output_names=["logits"], **settings
    )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _parity(
    model: nn.Module, run: Callable[[Tensor], Tensor], *, shape: Sequence[int], gradients: bool
) -> Parity:
    logits = slopes = scale = slope_scale = 0.0
    for count in BATCHES:
        x = _example(count, shape)
        with torch.no_grad():
            ours = model(x)
            theirs = run(x)
        scale = max(scale, float(ours.abs().max()))
        logits = max(logits, _distance(ours, theirs))
        if gradients:
            here = _gradient(model, x)
            there = _gradient(run, x)
            slope_scale = max(slope_scale, float(here.abs().max()))
            slopes = max(slopes, _distance(here, there))
    found = Parity(logits, slopes if gradients else None, TOLERANCE * max(1.0, scale))
    if not (found.logits <= found.bound and slopes <= TOLERANCE * max(1.0, slope_scale)):
        raise ArithmeticError(
            f"the exported model computes something else ({found}); nothing was written"
        )
    return found


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")


def _gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    point = x.clone().requires_grad_(True)
    logits = run(point)
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
    return torch.autograd.grad((logits * weights).sum(), point)[0]
