"""Models as torch.export.save wrote them: loaded from a checked archive, and inspected.

Checks keep Python code out (see `archive`). They are no sandbox: a model is a program of
torch's operators all the same.
"""

import io

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sat_ray.models.pt2.archive import checked_archive
from sat_ray.utils.import_string import first_line


class Exported(nn.Module):
    """An exported model as a module in inference mode: [0, 1] pixels -> logits.

    Whether BatchNorm and dropout train was settled when it was exported and stands in the graph
    (see `train_mode_operation`); the `training` flags that torch gives the module say nothing. So
    they are put down here, for a graph that was looked at.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        if operation := train_mode_operation(program):
            raise ValueError(
                f"was exported in train mode ({operation}); call model.eval() before "
                "torch.export.export"
            )
        self.batch_size = static_batch_size(program)
        self.program: nn.Module = program.module()
        for module in self.modules():
            module.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph."""
        logits: Tensor = self.program(x)
        return logits


def load_exported(data: bytes, *, device: torch.device, allow_pickle: bool = False) -> Exported:
    """Load the bytes of a .pt2 file onto a device.

    Raises ValueError, a sentence without its subject.
    """
    trusted = data if allow_pickle else checked_archive(data)
    try:
        program = torch.export.load(io.BytesIO(trusted))
    except Exception as error:
        raise ValueError(f"cannot be loaded by torch.export.load ({first_line(error)})") from None
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Exported(program)


def train_mode_operation(program: ExportedProgram) -> str:
    """Return an operation of the graph that normalises by the batch or drops activations; "" for
    none."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for position, argument in enumerate(schema.arguments if schema else ()):
            given = (
                node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            )
            if argument.name in ("train", "training") and given is True:
                return str(node.target)
    return ""


def static_batch_size(program: ExportedProgram) -> int | None:
    """Return the number of images of every call; None where the graph takes any number."""
    inputs = set(program.graph_signature.user_inputs)
    found = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in inputs
    ]
    if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].dim() != 4:
        shapes = [
            tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            for value in found
        ]
        raise ValueError(f"must take one batch of images (N, C, H, W), got {shapes}")
    size = found[0].shape[0]
    return size if isinstance(size, int) else None
