"""Nothing in a training step makes the host wait for the device: no value is read back, and no
number is copied over as a tensor.

On a GPU both would stop the queue of kernels; here every call of torch within a step is looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from trainings import enlarged, step_of

from sat_ray.activations.registry import ACTIVATIONS
from sat_ray.data.split import Split
from sat_ray.training.optimization import optimizer

READ_BACK = (
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.cpu,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
)
SIZED_BY_VALUES = (
    torch.nonzero,
    Tensor.nonzero,
    torch.unique,
    torch.masked_select,
    Tensor.masked_select,
)
COPIED_OVER = (torch.tensor, torch.as_tensor, torch.from_numpy)


class Waits(TorchFunctionMode):
    """Note every call that would make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (*READ_BACK, *SIZED_BY_VALUES, *COPIED_OVER):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """Yield what has been seen so far."""
    with Waits() as watch:
        yield watch.seen


@pytest.fixture(scope="module")
def images(digits: Split) -> Split:
    """Return eight images of 32 pixels."""
    return enlarged(digits.take(slice(0, 8)), 4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_activation_makes_the_host_wait(activation: str, images: Split) -> None:
    step = step_of(images, activation=activation)
    step(0)
    with waits() as seen:
        step(1)
    assert seen == []


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": "crop_flip"},
        {"augmentation": "resized_crop_flip", "label_smoothing": 0.1},
        {"attack_steps": 3, "ema_decay": 0.9, "gradient_clip": 1.0},
        {"objective": "trades", "attack_steps": 2},
        {"precision": "bf16"},
        {"random_erasing": 0.5, "mixup": 0.2, "cutmix": 1.0},
        {"objective": "mart", "awp_gamma": 0.01, "layer_decay": 0.9},
        {"optimizer": "adamw", "attack_label_smoothing": 0.1},
    ],
    ids=[
        *("crops", "ImageNet's", "PGD-3, average, clipping", "TRADES", "bf16"),
        *("mixing", "MART, AWP, layers", "AdamW"),
    ],
)
def test_no_recipe_makes_the_host_wait(
    changes: dict[str, Any], images: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "fuses", lambda model: True)  # as on a GPU
    step = step_of(images, **changes)
    step(0)
    with waits() as seen:
        step(1)
    assert seen == []


def test_what_waits_is_seen() -> None:
    with waits() as seen:
        value = torch.tensor(1.0)
        assert value.item() == float(value)
        if value > 0:
            value.tolist()
    assert seen[:2] == ["tensor", "item"]
    assert {"__float__", "__bool__", "tolist"} <= set(seen)
