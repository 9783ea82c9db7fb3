"""The state of an unfinished training in two files, written by turns and read with their checksums.

The later of the two is the last state, which holds the best weights too. The other is the state
before it and is read where the last is damaged. Earlier states are not kept, and no state is kept
once the training is committed.
"""

import dataclasses
import hashlib
import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sat_ray.storage.store import Storage
from sat_ray.training.catastrophic_overfitting import Memory
from sat_ray.training.resume.state import TrainingState, joined, part_of

FOLDERS = ("state/progress", "state/progress/second")
LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file


class StateFiles:
    """The two files of one training, for a `with` statement, which waits for the last write."""

    def __init__(self, storage: Storage, key: str) -> None:
        self.storage = storage
        self.turn = 0  # the file to write next
        self.paths = tuple(f"{folder}/{key}.safetensors" for folder in FOLDERS)
        self.writing: Future[None] | None = None
        self.thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "StateFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown()

    def write(self, state: TrainingState) -> None:
        """Write a state as it is now, in a thread, after the one before it is written.

        Raises the error that kept that one from being written.
        """
        self.wait()
        self.writing = self.thread.submit(self._write, state.snapshot())

    def wait(self) -> None:
        """Wait until the last state is written; raises the error that kept it from that."""
        writing = self.writing
        self.writing = None
        if writing is not None:
            writing.result()

    def read(self) -> TrainingState | None:
        """Return the last state that is not damaged, None where there is none.

        A damaged file is named in a warning.
        """
        found = [
            (state.epoch, state.step, turn, state)
            for turn in (0, 1)
            if (state := self._read(self.paths[turn])) is not None
        ]
        if not found:
            return None
        *_, turn, state = max(found, key=lambda one: one[:2])
        self.turn = 1 - turn
        return state

    @property
    def last(self) -> str | None:
        """Return the full path of the state that was written last, None where there is none."""
        path = self.paths[1 - self.turn]
        return self.storage.full(path) if self.storage.exists(path) else None

    def discard(self) -> None:
        """Remove both."""
        for path in self.paths:
            self.storage.discard(path)

    def _write(self, state: TrainingState) -> None:
        self.storage.write(self.paths[self.turn], pack_state(state))
        self.turn = 1 - self.turn

    def _read(self, path: str) -> TrainingState | None:
        try:
            return unpack_state(self.storage.read(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            logging.getLogger(__name__).warning(
                "%s: %s; training goes on from an earlier state", self.storage.full(path), error
            )
            return None


_PARTS = ("weights", "optimizer", "average", "best", "good")
# Of the momentum of SGD, which was the only optimizer when files had these names.
_RENAMED = {
    "momentum/": "optimizer/momentum_buffer/",
    "good/momentum/": "good/optimizer/momentum_buffer/",
}


def pack_state(state: TrainingState) -> bytes:
    """Write a training state as the bytes of one safetensors file.

    The header holds the plain values and a sha256 of everything.
    """
    # best and weights may be the same tensors; safetensors needs memory of its own for each
    tensors = {
        name: t.clone().contiguous()
        for name, t in joined(**{part: getattr(state, part) for part in _PARTS}).items()
    }
    plain = {
        f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name not in _PARTS
    }
    text = json.dumps(plain | {"guard": dataclasses.asdict(state.guard)})
    # one entry: safetensors writes several in any order, and equal states must be equal bytes
    header = json.dumps({"sha256": _digest(text, tensors), "state": text})
    packed: bytes = safetensors.torch.save(tensors, metadata={"header": header})
    return packed


def unpack_state(data: bytes) -> TrainingState:
    """Rebuild the training state that `pack_state` wrote; ValueError where it is damaged."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["header"])
        tensors = safetensors.torch.load(data)
        sound = header["sha256"] == _digest(header["state"], tensors)
        plain = json.loads(header["state"])
        plain |= {name: tuple(plain[name]) for name in ("best_score", "sums")} | {
            "guard": Memory(**plain["guard"])
        }
        tensors = {_name_of_today(name): tensor for name, tensor in tensors.items()}
        parts: dict[str, Any] = {part: part_of(tensors, part) for part in _PARTS}
        state = TrainingState(**plain, **parts)
    except Exception:  # other bytes make the readers of headers, tensors and JSON raise anything
        sound = False
    if not sound:
        raise ValueError(
            "training state does not match its sha256; it is damaged, or not one of this version"
        )
    return state


def _name_of_today(name: str) -> str:
    """Return the name of a tensor that a file of an earlier version may hold under another."""
    for old, new in _RENAMED.items():
        if name.startswith(old):
            return name.replace(old, new, 1)
    return name


def saved_epochs(storage: Storage, key: str) -> tuple[list[dict[str, float]], list[float]]:
    """Return history and epoch ends of the last saved state of a training, ([], []) without one.

    The weights are not read. So a damaged file is not noticed, and is left out only where its
    header is damaged.
    """
    found: list[dict[str, Any]] = []
    for folder in FOLDERS:
        path = f"{folder}/{key}.safetensors"
        try:
            length = int.from_bytes(storage.read(path, length=8), "little")
            header = json.loads(storage.read(path, offset=8, length=min(length, LONGEST_HEADER)))
            found.append(json.loads(json.loads(header["__metadata__"]["header"])["state"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not there, or replaced between the two reads
    if not found:
        return [], []
    last = max(found, key=lambda state: (state["epoch"], state["step"]))
    return last["history"], last.get("epoch_ends", [])


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    running = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        running.update(name.encode())
        running.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return running.hexdigest()
