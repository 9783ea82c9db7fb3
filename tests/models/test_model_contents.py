"""The digest of a model covers every place where weights can be kept, and is the same anywhere."""

import functools
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repository import paths_of_tests
from torch import Tensor, nn

from sat_ray.evaluation.external.contents import Contents, UnreadableModelError

TABLE: dict[str, Tensor] = {}


class Scaled(nn.Module):
    """A module that keeps one plain attribute, whatever it is."""

    def __init__(self, kept: object) -> None:
        super().__init__()
        self.kept = kept
        self.lock = threading.Lock()
        self.names = {"one", "two", "three"}

    def forward(self, x: Tensor) -> Tensor:
        return x


class Box:
    """A plain object with a slot."""

    __slots__ = ("inside",)

    def __init__(self, inside: object) -> None:
        self.inside = inside


class ReadsGlobal(nn.Module):
    """A module whose weights are a global variable."""

    def forward(self, x: Tensor) -> Tensor:
        return x * TABLE["weights"]


def linear(weights: Tensor) -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = weights.clone()
    return layer


def buffered(weights: Tensor) -> nn.Module:
    layer = nn.Identity()
    layer.register_buffer("kept", weights)
    return layer


def closure(weights: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ weights


def with_default(weights: Tensor) -> Callable[..., Tensor]:
    def forward(x: Tensor, w: Tensor = weights) -> Tensor:
        return x @ w

    return forward


def hooked(weights: Tensor) -> nn.Module:
    layer = nn.Identity()
    layer.register_forward_hook(lambda module, given, found: found @ weights)
    return layer


def quantized(weights: Tensor) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear(weights)), {nn.Linear})


def global_table(weights: Tensor) -> nn.Module:
    TABLE["weights"] = weights
    return ReadsGlobal()


KINDS: dict[str, Callable[[Tensor], nn.Module]] = {
    "parameter": linear,
    "buffer": buffered,
    "list of modules": lambda w: Scaled([linear(w)]),
    "dictionary in a tuple": lambda w: Scaled(({"a": w},)),
    "plain tensor": Scaled,
    "array": lambda w: Scaled(w.numpy()),
    "array of objects": lambda w: Scaled(np.array([w, None], dtype=object)),
    "number": lambda w: Scaled(float(w[0, 0])),
    "text": lambda w: Scaled(str(float(w[0, 0]))),
    "closure": lambda w: Scaled(closure(w)),
    "default of an argument": lambda w: Scaled(with_default(w)),
    "partial": lambda w: Scaled(functools.partial(torch.matmul, w)),
    "keyword of a partial": lambda w: Scaled(functools.partial(torch.matmul, other=w)),
    "bound method": lambda w: Scaled(linear(w).forward),
    "method of a tensor": lambda w: Scaled(w.matmul),
    "object with slots": lambda w: Scaled(Box(w)),
    "forward hook": hooked,
    "global variable": global_table,
    "quantized layer": quantized,
    "sparse tensor": lambda w: Scaled(w.to_sparse()),
    "complex tensor": lambda w: Scaled(torch.complex(w, w).conj()),
    "random generator": lambda w: Scaled(torch.Generator().manual_seed(int(w[0, 0]))),
    "scripted part": lambda w: nn.Sequential(torch.jit.script(linear(w))),
}


def weights(last: float) -> Tensor:
    return torch.tensor([[3.0 + last, -1.0], [0.5, last]])


def digest(kind: str, last: float) -> str:
    return Contents(KINDS[kind](weights(last)), name="model").hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_weight_changes_the_digest_wherever_it_is_kept(kind: str) -> None:
    assert digest(kind, 1.0) == digest(kind, 1.0)
    assert digest(kind, 1.0) != digest(kind, 2.0)


def test_another_process_finds_the_same_digests() -> None:
    code = (
        "import json, test_model_contents as t; print(json.dumps({k: t.digest(k, 1.0) for k in "
        "t.KINDS}))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": paths_of_tests()}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == {kind: digest(kind, 1.0) for kind in KINDS}


UNREADABLE: dict[str, Callable[[Path], Any]] = {
    "open file": lambda folder: (folder / "weights").open("wb"),
    "generator": lambda folder: (number for number in range(3)),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_part_that_cannot_be_read_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    part = UNREADABLE[kind](tmp_path)
    with pytest.raises(
        UnreadableModelError, match=r"^model\.kept\['weights'\] is a \w+, whose content"
    ) as error:
        Contents(Scaled({"weights": part}), name="model")
    assert "\n" not in str(error.value)
    if isinstance(part, io.IOBase):
        part.close()


def test_a_model_that_refers_to_itself_has_a_digest() -> None:
    layer = Scaled(None)
    layer.kept = [layer, layer.forward]
    assert Contents(layer, name="model").hexdigest() == Contents(layer, name="model").hexdigest()
