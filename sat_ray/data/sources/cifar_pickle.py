"""CIFAR's Python batches, read without running their code.

The official files (protocol 2, written by Python 2) need numpy's array and dtype and nothing else.
Here these names stand for plain records of this module, so that no other function runs, not even
numpy's, whatever the file says; the array is built from the record afterwards. Every other name is
refused before anything of the file was acted on.
"""

import io
import pickle
from typing import Any

import numpy as np


class UnsafePickleError(ValueError):
    """A batch file is no plain dictionary of lists, bytes and uint8 arrays."""


class _Kind:
    """Stands for a numpy dtype; only its name is kept."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Accept and forget byte order and alignment: bytes have neither."""


class _Array:
    """Stands for a numpy array: what a pickle says about one."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _reconstruct(*_: object) -> _Array:
    return _Array()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of one of three names; refuse all others."""
        if (module, name) not in _STAND_INS:
            raise UnsafePickleError(f"it names {module}.{name}, which no CIFAR batch needs")
        return _STAND_INS[module, name]


def read_batch(data: bytes) -> dict[str, Any]:
    """Return a batch's dictionary, its arrays as numpy uint8.

    Raises UnsafePickleError; nothing that the file names is ever called.
    """
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle fails in many ways
        raise UnsafePickleError(f"it is damaged ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise UnsafePickleError(f"it holds a {type(value).__name__} and not a dictionary")
    return {
        _text(key): _array(item) if isinstance(item, _Array) else item
        for key, item in value.items()
    }


def _text(key: object) -> str:
    return key.decode("ascii", "replace") if isinstance(key, bytes) else str(key)


def _array(record: _Array) -> np.ndarray:
    match record.state:
        case (_, tuple(shape), _Kind(name=b"u1" | "u1"), bool() | int() as fortran, bytes(data)):
            try:
                return np.frombuffer(data, dtype=np.uint8).reshape(
                    shape, order="F" if fortran else "C"
                )
            except (ValueError, TypeError):
                pass
    raise UnsafePickleError("an array in it is not made of uint8")
