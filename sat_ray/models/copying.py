"""Copies of models that other people wrote, and what to say where a model cannot be copied."""

import copy
import threading
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from sat_ray.utils.import_string import first_line

ModelT = TypeVar("ModelT", bound=nn.Module)
LOCKS = (type(threading.Lock()), type(threading.RLock()))


class NotCopiedError(ValueError):
    """A model holds something that Python cannot copy, such as an open file."""


def copied(model: ModelT, *, what: str = "the model") -> ModelT:
    """Return a deep copy of a model. what: its name for the message.

    A tensor that an earlier forward pass left on a module (old-style weight_norm does) is copied
    without its graph, which copy.deepcopy refuses. A lock is shared with the copy. Raises
    NotCopiedError, in one line, where something else cannot be copied.
    """
    memo: dict[int, object] = {}
    for value in _plain_attributes(model):
        if isinstance(value, LOCKS):
            memo[id(value)] = value
        elif isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise NotCopiedError(
            f"{what} cannot be copied ({type(error).__name__}: {first_line(error)}); keep what "
            "cannot be copied (open files, sessions, threads) outside the module"
        ) from error


def _plain_attributes(model: nn.Module) -> Iterator[object]:
    for module in model.modules():
        yield from vars(module).values()
