"""Networks of which only the shapes are asked for: no memory, no numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

DRAWN = (Tensor.normal_, Tensor.uniform_)


class _NothingDrawn(TorchFunctionMode):
    """Leave out the draws of initial weights.

    On the meta device they change nothing, and the first one loads torch's compiler for a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function of torch, unless it draws numbers."""
        return args[0] if func in DRAWN else func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Make what is built inside the block on torch's meta device, where nothing is computed."""
    with torch.device("meta"), _NothingDrawn():
        yield
