"""Models that others wrote are copied where Python can copy them, and refused in one line else."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sat_ray.evaluation.low_precision.surrogate import make_surrogate
from sat_ray.models import Normalized
from sat_ray.models.copying import NotCopiedError, copied
from sat_ray.utils import compile as compilation

X = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Keeps(nn.Module):
    """A network that keeps its last features and something else."""

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(16, 5)
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.conv(x).flatten(1)
        return self.head(self.features)


def old_weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(16, 5))


def after_a_pass() -> nn.Module:
    model = Keeps(None)
    model(X)
    return model


COPIED = {
    "old weight_norm": old_weight_norm,
    "features of the last pass": after_a_pass,
    "lock": lambda: Keeps(threading.Lock()),
    "reentrant lock": lambda: Keeps(threading.RLock()),
}


@pytest.mark.parametrize("kind", COPIED)
def test_a_copy_computes_the_same_with_weights_of_its_own(kind: str) -> None:
    model = COPIED[kind]().eval()
    again = copied(model)
    with torch.no_grad():
        expected = model(X)
        assert torch.equal(again(X), expected)
        for parameter in again.parameters():
            parameter.zero_()
        assert torch.equal(model(X), expected)
        assert not torch.equal(again(X), expected)


@pytest.mark.parametrize("gradient", ["bf16", "fp16"])
def test_a_model_that_holds_a_lock_has_a_surrogate(
    gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    model = Keeps(threading.Lock()).eval()
    fast = make_surrogate(model, gradient=gradient, device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(fast(X), model(X), rtol=0.05, atol=0.05)


def test_a_model_that_cannot_be_copied_is_refused_in_one_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, pytest.raises(NotCopiedError) as error:
        copied(Keeps(log))
    text = str(error.value)
    assert "\n" not in text
    assert "the model cannot be copied (TypeError: cannot pickle '_io.TextIOWrapper'" in text


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_another_number_of_channels_are_refused(channels: int) -> None:
    model = Normalized(nn.Flatten(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match=rf"must have 3 channel\(s\).*got {channels};"):
        model(torch.rand(2, channels, 4, 4))


def test_a_channel_without_spread_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match=r"got 0 in channel 2: all training images have the same"):
        Normalized(nn.Flatten(), mean=(0.5, 0.5, 1.0), std=(0.2, 0.2, 0.0))
