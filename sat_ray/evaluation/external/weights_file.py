"""Files of weights as others publish them: the tensors of a file by flat names.

A file often holds more than one network's tensors, in nested dictionaries:

    {"epoch": 90, "state_dict": {"module.conv1.weight": ...}, "ema": {"module.conv1.weight": ...}}

Names are read flat (`state_dict.conv1.weight`, `ema.conv1.weight`), without the prefixes of data
parallelism and torch.compile.
"""

import argparse
import io
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sat_ray.storage.store import Storage
from sat_ray.storage.uris import check_place
from sat_ray.utils.import_string import first_line
from sat_ray.utils.serialization import sha256

WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile put into names
DEEPEST = 32  # nested dictionaries; one that holds itself has no end
MOST_ENTRIES = 200_000  # a dictionary that lies in many others counts in each of them
SHARED = 4  # elements of all tensors, per byte of the file: entries may share their memory
SHORT = 120  # characters of a reason; torch writes a page about weights_only
ALLOWED = "give a file of weights (.safetensors, .pt, .pth), local or s3://"
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

    No code of the file runs. Half precision becomes float32. Raises ValueError, in one line, where
    there is none, it cannot be read or holds no tensors.
    """
    check_place(uri, field="weights")
    folder, file = Storage.of_file(uri)
    if not folder.is_file(file):
        raise ValueError(f"weights {uri} must be a file, and there is none; {ALLOWED}")
    data = folder.read(file)
    try:
        flat = _flat(_content(data, uri))
        _check_tensors({name: tensor for name, (tensor, _) in flat.items()}, len(data))
    except ValueError as error:
        raise ValueError(f"weights {uri} {error}") from None
    names = reduced(flat)
    return PublishedWeights(
        uri=uri,
        sha256=sha256(data),
        tensors={names[one]: _float32(tensor) for one, (tensor, _) in flat.items()},
        groups={names[one]: group for one, (_, group) in flat.items()},
    )


def _content(data: bytes, uri: str) -> object:
    """Return what a file holds; ValueError where it is no file of plain tensors."""
    if uri.endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise ValueError(f"is no safetensors file ({first_line(error)})") from None
        except KeyError as error:  # of a type that torch has not
            raise ValueError(f"hold tensors of the type {error}, which torch has not") from None
    try:
        _check_stored(data)
        with torch.serialization.safe_globals(list(PLAIN)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that are refused afterwards
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(str(error).split())
        reason = f"are no file that torch.save wrote, or a damaged one ({_short(error)})"
        if not data:
            reason = "are an empty file"
        elif "GLOBAL" in said:
            code = said.partition("GLOBAL ")[2].split()[0]
            reason = f"hold pickled code ({code}), which is not run"
        elif "TorchScript" in said:
            reason = "is a TorchScript file"
        raise ValueError(
            f"{reason}; where the model was made, write its state dict alone: "
            "torch.save(model.state_dict(), FILE)"
        ) from None


def _short(error: Exception) -> str:
    """Return what an error says where that is short and says anything, else its type."""
    line = first_line(error)
    return line if " " in line and len(line) <= SHORT else type(error).__name__


def _check_stored(data: bytes) -> None:
    """Raise ValueError where a zip file unpacks to more bytes than it has; torch packs none."""
    source = io.BytesIO(data)
    if not zipfile.is_zipfile(source):
        return
    with zipfile.ZipFile(source) as archive:
        announced = sum(part.file_size for part in archive.infolist())
    if announced > len(data):
        raise ValueError(f"its parts announce {announced:,} bytes, and it has {len(data):,}")


def _flat(content: object) -> dict[str, tuple[Tensor, str]]:
    """Return the tensors in nested dictionaries by flat name, with the name of their dictionary.

    Raises ValueError where there are none, or where some would be left out.
    """
    found: dict[str, tuple[Tensor, str]] = {}
    entries = 0
    waiting = [("", "", content, 0)]
    while waiting:
        name, group, value, depth = waiting.pop()
        if isinstance(value, Tensor) and depth:
            if name in found:
                raise ValueError(f"hold two tensors called {name}; rename one")
            found[name] = (value.detach(), group)
        if not isinstance(value, Mapping):
            continue
        entries += len(value)
        if depth > DEEPEST or entries > MOST_ENTRIES:
            raise ValueError(
                f"hold dictionaries that are nested more than {DEEPEST} deep, or have more than "
                f"{MOST_ENTRIES:,} entries; give a file with a state dict"
            )
        prefix = f"{name}." if name else ""
        inside = [(f"{prefix}{key}", name, one, depth + 1) for key, one in value.items()]
        waiting += reversed(inside)
    if not found:
        raise ValueError("hold no tensors; give a file with a state dict")
    return found


def _check_tensors(tensors: Mapping[str, Tensor], size: int) -> None:
    """Raise ValueError for tensors that are no plain numbers, or more than a file can hold.

    size: bytes of the file.
    """
    for name, tensor in tensors.items():
        unusual = tensor.is_complex() or tensor.is_quantized or tensor.is_nested or tensor.is_meta
        if unusual or tensor.layout is not torch.strided:
            raise ValueError(
                f"hold {name}, a tensor of another kind ({tensor.dtype}, {tensor.layout}, "
                f"{tensor.device}); give real numbers, not quantized, sparse, nested or on the "
                "meta device"
            )
        if tensor.numel() > size:
            raise ValueError(
                f"announce {tensor.numel():,} elements for {name} in a file of {size:,} bytes; "
                "write the tensors themselves, not expanded ones"
            )
    if (count := sum(tensor.numel() for tensor in tensors.values())) > SHARED * size:
        raise ValueError(
            f"announce {count:,} elements in a file of {size:,} bytes; give a file with one state "
            "dict"
        )


def reduced(names: Iterable[str]) -> dict[str, str]:
    """Return each name without the parts that wrappers add, unless two would become the same."""
    short = {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names
    }
    count = Counter(short.values())
    return {name: one if one and count[one] == 1 else name for name, one in short.items()}


def _float32(tensor: Tensor) -> Tensor:
    """Return floating-point numbers as float32 and all others as they are."""
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
