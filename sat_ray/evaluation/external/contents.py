"""A digest of everything that a model computes with: weights wherever they are kept.

Parameters and buffers are not all: networks in a plain list, a tensor as a plain attribute, packed
weights of quantized layers, arrays, the variables of a closure, the arguments of a partial, and the
global variables that the user's functions read. All of these are walked, in a fixed order.
What cannot be read (an open session, a handle of a compiled library) is refused by its name,
because a change of it would not be noticed and old results would be taken for new ones.
"""

import functools
import hashlib
import logging
import os
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sat_ray.models.copying import LOCKS
from sat_ray.utils.code_hash import PACKAGE, is_installed
from sat_ray.utils.import_string import first_line

Child = tuple[str, object]
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice)
PLAIN_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
UNREAD = (*LOCKS, logging.Logger, threading.local, type(os.environ))
NOT_COMPUTED = ("_state_dict", "_load_state_dict", "_compiled_call_impl")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
NOT_OF_A_CLASS = ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__")


class UnreadableModelError(ValueError):
    """A model holds a part whose content cannot be read."""


class Contents:
    """The digest of an object, and the modules of the code that it consists of.

    Raises UnreadableModelError, naming the part, where something can be neither read nor ignored.
    """

    def __init__(self, root: object, *, name: str) -> None:
        self.modules: set[str] = set()
        self._digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # an id is that of one object only while the object lives
        waiting: list[Child] = [(name, root)]
        while waiting:
            path, value = waiting.pop()
            waiting += reversed(list(self._read(path, value)))

    def hexdigest(self) -> str:
        """Return the digest."""
        return self._digest.hexdigest()

    def _note(self, path: str, *parts: object) -> None:
        self._digest.update(f"{path} {' '.join(map(str, parts))}\n".encode())

    def _read(self, path: str, value: object) -> Iterable[Child]:
        """Add one object to the digest and return what it holds."""
        if isinstance(value, PLAIN) and type(value) in PLAIN:
            self._note(path, type(value).__name__, repr(value))
            return ()
        if id(value) in self._seen:
            self._note(path, "same as", self._seen[id(value)])
            return ()
        self._seen[id(value)] = len(self._kept)
        self._kept.append(value)
        if isinstance(value, UNREAD):
            self._note(path, type(value).__qualname__)
            return ()
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            return self._read_array(path, value)
        return self._read_object(path, value)

    def _read_array(self, path: str, value: Any) -> Iterable[Child]:
        if isinstance(value, Tensor):
            return self._read_tensor(path, value)
        array = np.asarray(value)
        self._note(path, array.dtype, array.shape)
        if array.dtype.hasobject:
            return [(f"{path}[{place}]", one) for place, one in enumerate(array.flat)]
        self._digest.update(np.ascontiguousarray(array).tobytes())
        return ()

    def _read_tensor(self, path: str, value: Tensor) -> Iterable[Child]:
        tensor = value.detach()
        self._note(path, tensor.dtype, tuple(tensor.shape), tensor.layout)
        if tensor.is_quantized:
            return [(f"{path}.int_repr", tensor.int_repr()), *self._scales(path, tensor)]
        if tensor.layout is not torch.strided:
            whole = tensor.to_dense().to_sparse()
            return [(f"{path}.indices", whole.indices()), (f"{path}.values", whole.values())]
        if tensor.is_meta:
            raise UnreadableModelError(f"{path} is on the meta device and holds no values")
        flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        self._digest.update(flat.view(torch.uint8).numpy().tobytes())
        return ()

    def _scales(self, path: str, tensor: Tensor) -> list[Child]:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return [(f"{path}.scale", (tensor.q_scale(), tensor.q_zero_point()))]
        scales = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        return [(f"{path}.scales", (*scales, tensor.q_per_channel_axis()))]

    def _read_object(self, path: str, value: object) -> Iterable[Child]:
        self._note(path, type(value).__module__, type(value).__qualname__)
        if isinstance(value, PLAIN_TORCH):
            self._note(path, value)
            return ()
        if isinstance(value, type):
            return self._read_class(path, value)
        if isinstance(value, types.ModuleType):
            self._note(path, value.__name__)
            return ()
        if (found := self._read_callable(path, value)) is not None:
            return found
        if (found := _contained(path, value)) is not None:
            return found
        return [(f"{path}.__class__", type(value)), *self._state(path, value)]

    def _read_callable(self, path: str, value: Any) -> Iterable[Child] | None:
        """Return what a function, method or partial computes with; None for anything else."""
        if isinstance(value, types.FunctionType):
            return self._read_function(path, value)
        if isinstance(value, types.MethodType):
            return [(f"{path}.__self__", value.__self__), (path, value.__func__)]
        if isinstance(value, functools.partial):
            inside = (value.func, value.args, value.keywords)
            return [(f"{path}.func", inside[0]), (f"{path}.args", inside[1:])]
        if isinstance(value, (staticmethod, classmethod, functools._lru_cache_wrapper)):
            return [(f"{path}.__wrapped__", value.__wrapped__)]
        if isinstance(value, property):
            return [(path, (value.fget, value.fset))]
        if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            self._note(path, value.__qualname__)
            owner = getattr(value, "__self__", None)
            return () if isinstance(owner, types.ModuleType) else [(f"{path}.__self__", owner)]
        if isinstance(value, weakref.ref):
            return [(path, value())]
        return None

    def _read_function(self, path: str, function: types.FunctionType) -> Iterable[Child]:
        self._note(path, function.__module__, function.__qualname__)
        yield f"{path}.__defaults__", (function.__defaults__, function.__kwdefaults__)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                yield f"{path}.{name}", cell.cell_contents
            except ValueError:  # a variable that has no value yet
                self._note(f"{path}.{name}", "empty")
        yield f"{path}.__dict__", dict(vars(function))
        if is_own(function.__module__):
            self.modules.add(function.__module__)
            yield from _globals_read(function)

    def _read_class(self, path: str, one: type) -> Iterable[Child]:
        self._note(path, one.__module__, one.__qualname__)
        if one.__module__.partition(".")[0] not in sys.stdlib_module_names:
            self.modules.add(one.__module__)
        if is_own(one.__module__):
            yield from ((f"{path}.__bases__", base) for base in one.__bases__)
            for name, value in vars(one).items():
                if name not in NOT_OF_A_CLASS and not isinstance(value, DESCRIPTORS):
                    yield f"{path}.{name}", value

    def _state(self, path: str, value: object) -> Iterable[Child]:
        """Return the attributes of an object, or what Python would pickle of it."""
        if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):
            return _parts_of_module(path, value)
        if isinstance(value, torch.jit.ScriptModule):
            tensors = [*value.named_parameters(), *value.named_buffers()]
            return [(f"{path}.code", _script_code(value)), (path, tensors)]
        if isinstance(value, torch.Generator):
            return [(f"{path}.state", value.get_state())]
        if isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
            return [(f"{path}.state", value.__getstate__())]
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise UnreadableModelError(
                f"{path} is a {type(value).__name__}, whose content cannot be read "
                f"({first_line(error)}); keep weights in parameters, buffers, tensors or arrays"
            ) from None
        if isinstance(reduced, str):
            self._note(path, reduced)
            return ()
        _, arguments, *state = reduced
        return [(f"{path}()", arguments), *_unpacked(path, state)]


DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType)


def is_own(module: str | None) -> bool:
    """Return whether a module is the user's own: not installed, of Python, or of this package."""
    top = (module or "").partition(".")[0]
    known = top in sys.stdlib_module_names or top in ("", "__main__", "torch", PACKAGE)
    return not known and not is_installed(top)


def _globals_read(function: types.FunctionType) -> Iterator[Child]:
    """Yield the global variables that a function reads, those of the user's modules included."""
    names = sorted(_names(function.__code__))
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType) and is_own(value.__name__):
            inside = vars(value)
            yield from ((f"{value.__name__}.{one}", inside[one]) for one in names if one in inside)
        elif name in function.__globals__:
            yield f"{function.__module__}.{name}", value


def _names(code: types.CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _contained(path: str, value: object) -> list[Child] | None:
    """Return the items of a plain container; None for anything else."""
    if type(value) in (list, tuple, torch.Size):
        assert isinstance(value, (list, tuple))
        return [(f"{path}[{place}]", one) for place, one in enumerate(value)]
    if type(value) is dict or isinstance(value, types.MappingProxyType):
        assert isinstance(value, Mapping)
        return _items(path, value)
    if isinstance(value, (set, frozenset)):
        digests = sorted(Contents(one, name="item").hexdigest() for one in value)
        return [(f"{path}.items", digests)]
    return None


def _items(path: str, found: Mapping[Any, object]) -> list[Child]:
    children: list[Child] = []
    for place, (key, value) in enumerate(found.items()):
        if isinstance(key, (str, int)):
            children.append((f"{path}[{key!r}]", value))
        else:
            children += [(f"{path}.key[{place}]", key), (f"{path}[{place}]", value)]
    return children


def _parts_of_module(path: str, module: nn.Module) -> Iterator[Child]:
    attributes = vars(module)
    if type(module).__name__ == "OptimizedModule":  # torch.compile: the same module, in other code
        attributes = {"_modules": module._modules}
    elif isinstance(module, torch.fx.GraphModule):
        yield f"{path}.code", module.code
        attributes = {name: attributes[name] for name in ("_parameters", "_buffers", "_modules")}
    for name, value in attributes.items():
        if name in ("_parameters", "_buffers", "_modules"):
            yield from ((f"{path}.{one}", part) for one, part in value.items())
        elif name in HOOKS:  # the keys count the hooks of the process
            yield f"{path}.{name}", list(value.values())
        elif not name.startswith(NOT_COMPUTED):
            yield f"{path}.{name}", value


def _script_code(module: Any) -> list[str]:
    return [str(getattr(part, "code", "")) for part in module.modules()]


def _unpacked(path: str, state: list[Any]) -> Iterator[Child]:
    """Yield state, list items and dict items of a reduced object."""
    for place, part in enumerate(state):
        if place == 0 and isinstance(part, dict):
            yield from ((f"{path}.{name}", one) for name, one in part.items())
        elif place in (1, 2) and part is not None:
            yield f"{path}.items", list(part)
        elif part is not None:
            yield f"{path}.state", part
