"""torch.compile for training, for surrogates, and for what an attack's step does beside the model.

A training has two models: the attacker's view and the model that is updated.

It also compiles what an attack's step does beside the model.

What is compiled is a way to call a module, never the module: weights keep their names, checkpoints
and exports stay as they are, and views go on sharing memory. In a training each has graphs of its
own (one is in train mode, the other never), one for every size of images, and shares none with
another training of the process. Whatever is compiled is compared with the plain module before it is
used.
"""

import inspect
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])

BACKEND = "inductor"
# Of one module in one training: its calls with and without gradients, for every size of images.
MOST_GRAPHS = 128


def check_compiler(device: torch.device, *, asked: str, instead: str) -> None:
    """Raise ValueError where this machine cannot compile for a device.

    Compiling needs a C++ compiler and, for a GPU, Triton.

    asked, instead: the setting that needs it, as "field is value", and the value that does not.
    """
    from torch._inductor import config  # a second to import, for those who compile
    from torch.utils._triton import has_triton

    known = config.cpp.cxx if isinstance(config.cpp.cxx, tuple) else (config.cpp.cxx,)
    if not any(shutil.which(shlex.split(command)[0]) for command in known if command):
        raise ValueError(
            f"{asked}, but there is no C++ compiler here; choose {instead}, or put g++ on the "
            "path, or its path in CXX"
        )
    if device.type != "cpu" and not has_triton():
        raise ValueError(
            f"{asked}, but there is no Triton for {device.type} here; choose {instead}, or a GPU "
            "that Triton supports, and install its package"
        )


def forget_graphs() -> None:
    """Drop what this process has compiled.

    Otherwise a worker of many models runs out of graphs, then of memory.
    """
    torch.compiler.reset()


def compiled(module: nn.Module | Callable[..., Any]) -> Callable[..., Any]:
    """Compile a module or function at its first call, and again for other sizes of images."""
    settings: dict[str, Any] = {"backend": BACKEND, "dynamic": False}
    newer = {"isolate_recompiles": True, "recompile_limit": MOST_GRAPHS}
    if newer.keys() <= inspect.signature(torch.compile).parameters.keys():
        settings |= newer
    else:  # before torch 2.14 the limit is one for all
        torch._dynamo.config.recompile_limit = max(
            torch._dynamo.config.recompile_limit, MOST_GRAPHS
        )
    call: Callable[..., Any] = torch.compile(module, **settings)
    return call


_FUSING: ContextVar[bool] = ContextVar("fusing", default=False)


@contextmanager
def fusing(asked: bool) -> Iterator[None]:
    """Let functions that are `fusable` run as compiled kernels in here, if asked."""
    token = _FUSING.set(asked)
    try:
        yield
    finally:
        _FUSING.reset(token)


def fusable(function: Function) -> Function:
    """Decorate a function of tensors of fixed sizes that does little work on much memory.

    Compiled, it passes over the memory once, not ten times.

    The results are the same in every bit, but for sums of rounded numbers (an l2 norm), whose order
    is the compiler's.
    """
    kept: dict[str, Callable[..., Any]] = {}

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        if not _FUSING.get():
            return function(*args, **keywords)
        if BACKEND not in kept:
            kept[BACKEND] = compiled(function)
        return kept[BACKEND](*args, **keywords)

    return cast(Function, call)
