"""Models as torch.export.save wrote them: what may be loaded, and what can be said of one before it is run.

torch.export.load unpickles parts of an archive. So an archive is first read as what it is, a zip file, and refused unless every part is
plain: raw tensors that its tables name, JSON, short text, or example inputs that torch's restricted unpickler takes. That keeps pickled
code out; it is no sandbox, a model is a program all the same.
"""

import io
import json
import pickle
import re
import zipfile
import zlib

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sat_ray.reference import first_line

_TABLE = re.compile(r"([^/]+/data/(?:weights|constants))/[^/]+_config\.json")
_NOTES = "archive_format|archive_version|byteorder|\\.data/version|\\.data/serialization_id"
_TEXT = re.compile(rf"[^/]+/({_NOTES}|extra/.*|(?!data/aotinductor/).*\.json)")
_EXAMPLES = re.compile(r"[^/]+/data/sample_inputs/[^/]+\.pt")


class Exported(nn.Module):
    """An exported model as a module in inference mode: [0, 1] pixels -> logits.

    Whether BatchNorm and dropout train was settled when it was exported and stands in the graph (see `train_mode_operation`); the
    `training` flags that torch gives the module say nothing. So they are put down here, for a graph that was looked at.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        if operation := train_mode_operation(program):
            raise ValueError(f"was exported in train mode ({operation}); call model.eval() before torch.export.export")
        self.batch_size = static_batch_size(program)
        self.program: nn.Module = program.module()
        for module in self.modules():
            module.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph."""
        logits: Tensor = self.program(x)
        return logits


def load_exported(data: bytes, *, device: torch.device, allow_pickle: bool = False) -> Exported:
    """Load the bytes of a .pt2 file onto a device. Raises ValueError, a sentence without its subject."""
    try:
        reason = "" if allow_pickle else pickled_part(data)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"is damaged ({first_line(error)}); copy or export it again") from None
    if reason:
        raise ValueError(f"{reason}; loading it could run code. Allowed: what torch.export.save writes for a model of plain tensors")
    try:
        program = torch.export.load(io.BytesIO(data))
    except Exception as error:
        raise ValueError(f"cannot be loaded by torch.export.load ({first_line(error)})") from None
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Exported(program)


def pickled_part(data: bytes) -> str:
    """Say which part of a .pt2 archive is, or may be, more than plain data; "" where all of it is. Raises zipfile's errors on damage."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        return "is no .pt2 archive"
    with archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if len(set(names)) != len(names):
            return "holds a part twice"
        try:
            raw = {part for name in names if (table := _TABLE.fullmatch(name)) for part in _raw_tensors(archive.read(name), table[1])}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return f"holds a pickled tensor or a damaged table ({error})"
        for name in names:
            if name not in raw and not _TEXT.fullmatch(name) and not (_EXAMPLES.fullmatch(name) and _is_plain(archive.read(name))):
                return f"holds the pickled part {name}"
    return ""


def _raw_tensors(table: bytes, folder: str) -> set[str]:
    entries = json.loads(table)["config"].items()
    for name, entry in entries:
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise ValueError(name)
    return {f"{folder}/{entry['path_name']}" for _, entry in entries}


def _is_plain(data: bytes) -> bool:
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError):
        return False
    return True


def train_mode_operation(program: ExportedProgram) -> str:
    """Name an operation of the graph that normalises by the batch or drops activations; "" where there is none."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for position, argument in enumerate(schema.arguments if schema else ()):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if argument.name in ("train", "training") and given is True:
                return str(node.target)
    return ""


def static_batch_size(program: ExportedProgram) -> int | None:
    """Return the number of images that every call must have; None where the graph takes any number."""
    inputs = set(program.graph_signature.user_inputs)
    found = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].dim() != 4:
        shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in found]
        raise ValueError(f"takes {shapes}; allowed: one batch of images (N, C, H, W)")
    size = found[0].shape[0]
    return size if isinstance(size, int) else None
