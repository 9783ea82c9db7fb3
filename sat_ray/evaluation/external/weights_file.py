"""Files of weights as others publish them: the tensors of a file by flat names.

A file often holds more than one network's tensors, in nested dictionaries:

    {"epoch": 90, "state_dict": {"module.conv1.weight": ...}, "ema": {"module.conv1.weight": ...}}

Names are read flat (`state_dict.conv1.weight`, `ema.conv1.weight`), without the prefixes of data
parallelism and torch.compile.
"""

import argparse
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sat_ray.storage.store import Storage
from sat_ray.utils.import_string import first_line
from sat_ray.utils.serialization import sha256

WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into names
DEEPEST = 5  # nested dictionaries
_SCALAR = type(np.float64(0)).__reduce__(np.float64(0))[0]
# No more than data: settings and figures that lie beside the tensors in many files.
PLAIN: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # its name before and since numpy 2
    (_SCALAR, "numpy._core.multiarray.scalar"),
)


@dataclass(frozen=True)
class PublishedWeights:
    """The tensors of a file by their flat names.

    sha256: of the file's bytes; groups: for each name the dictionary that holds the tensor.
    """

    uri: str
    sha256: str
    tensors: dict[str, Tensor]
    groups: dict[str, str]


def read_weights(uri: str) -> PublishedWeights:
    """Read a file of weights, local or s3://: .safetensors, or what torch.save wrote.

    No code of the file runs. Half precision becomes float32. Raises FileNotFoundError where there
    is none, ValueError, in one line, where it cannot be read or holds no tensors.
    """
    folder, file = Storage.of_file(uri)
    data = folder.read(file)
    flat = dict(_flat(_content(data, uri)))
    if not flat:
        raise ValueError(f"weights {uri} hold no tensors; give a file with a state dict")
    names = reduced(flat)
    return PublishedWeights(
        uri=uri,
        sha256=sha256(data),
        tensors={names[one]: _float32(tensor, one, uri) for one, (tensor, _) in flat.items()},
        groups={names[one]: group for one, (_, group) in flat.items()},
    )


def _content(data: bytes, uri: str) -> object:
    """Return what a file holds; ValueError where it is no file of plain tensors."""
    what = f"weights {uri}"
    if uri.endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{what} is no safetensors file ({first_line(error)})") from None
    try:
        with torch.serialization.safe_globals(list(PLAIN)):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(str(error).split())
        reason = f"cannot be read ({first_line(error)})"
        if "GLOBAL" in said:
            code = said.partition("GLOBAL ")[2].split()[0]
            reason = f"hold pickled code ({code}), which is not run"
        elif "TorchScript" in said:
            reason = "is a TorchScript file"
        raise ValueError(
            f"{what} {reason}; where the model was made, write its state dict alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from None


def _flat(
    value: object, path: str = "", depth: int = 0
) -> Iterator[tuple[str, tuple[Tensor, str]]]:
    """Yield the tensors in nested dictionaries: flat name, tensor, and name of its dictionary."""
    if not isinstance(value, Mapping) or depth > DEEPEST:
        return
    for key, one in value.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(one, Tensor):
            yield name, (one.detach(), path)
        else:
            yield from _flat(one, name, depth + 1)


def reduced(names: Iterable[str]) -> dict[str, str]:
    """Return each name without the parts that wrappers add, unless two would become the same."""
    short = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names
    }
    count = Counter(short.values())
    return {name: one if one and count[one] == 1 else name for name, one in short.items()}


def _float32(tensor: Tensor, name: str, uri: str) -> Tensor:
    """Return floating-point numbers as float32 and all others as they are."""
    if tensor.is_complex() or tensor.is_quantized or tensor.layout is not torch.strided:
        raise ValueError(
            f"weights {uri}: {name} is a tensor of another kind ({tensor.dtype}, {tensor.layout}); "
            "give real numbers, not quantized and not sparse"
        )
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
