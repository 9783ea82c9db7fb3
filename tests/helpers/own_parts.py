"""User-defined parts for tests; most of them must be refused, each for one reason."""

import sys
import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return F.relu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def straight_through(x: Tensor) -> Tensor:
    return _StraightThrough.apply(x)


def in_place(x: Tensor) -> Tensor:
    return x.mul_(2)


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def explodes(x: Tensor) -> Tensor:
    return x.exp()


def detached(x: Tensor) -> Tensor:
    return 2 * x.detach()


def staircase(x: Tensor) -> Tensor:
    return x.round()


def noisy(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def sharp(x: Tensor) -> Tensor:
    """Return x * sigmoid(32 x): nearly relu, and PGD finds it more robust than it is."""
    return x * torch.sigmoid(32 * x)


def mean(x: Tensor) -> Tensor:
    return x.mean()


def two(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def divides(x: Tensor, alpha: float = 1.0) -> Tensor:
    return x / alpha


number = 3


def counts() -> nn.Module:
    return nn.BatchNorm2d(5)


def _layers(num_classes: int, activation) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(64, 8), activation(), nn.Linear(8, num_classes)]


class _Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def no_activation(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(*_layers(num_classes, nn.ReLU))


def mixed(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(*_layers(num_classes, activation), nn.ReLU())


def shared(num_classes: int, activation) -> nn.Module:
    one = activation()
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), one, nn.Linear(8, 8), one, nn.Linear(8, num_classes)
    )


def probabilities(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(*_layers(num_classes, activation), nn.Softmax(dim=1))


def scaled_probabilities(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(
        *_layers(num_classes, activation), nn.Softmax(dim=1), _Lambda(lambda x: 0.5 * x)
    )


def sigmoid(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(*_layers(num_classes, activation), _Lambda(torch.sigmoid))


def compiled(num_classes: int, activation) -> nn.Module:
    return torch.compile(nn.Sequential(*_layers(num_classes, activation)))


def half(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(*_layers(num_classes, activation)).half()


def lazy(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), activation(), nn.LazyLinear(num_classes))


class _Skips(nn.Module):
    def __init__(self, num_classes: int, activation, share: float) -> None:
        super().__init__()
        flatten, first, act, last = _layers(num_classes, activation)
        self.first, self.last = nn.Sequential(flatten, first, act), last
        self.maybe, self.share = nn.Linear(8, 8), share

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if not self.training or torch.rand(()) >= self.share:
            x = x + self.maybe(x)
        return self.last(x)


def skips_a_layer(num_classes: int, activation) -> nn.Module:
    return _Skips(num_classes, activation, 0.5)


def seldom_skips(num_classes: int, activation) -> nn.Module:
    return _Skips(num_classes, activation, 0.1)


def drops_out(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(
        *_layers(num_classes, activation)[:3], nn.Dropout(0.5), nn.Linear(8, num_classes)
    )


class _Keeps(nn.Module):
    def __init__(self, num_classes: int, activation, kept=None) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Sequential(*_layers(num_classes, activation)[:3]),
            nn.Linear(8, num_classes),
        )
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x)
        return self.head(self.features)


def keeps_features(num_classes: int, activation) -> nn.Module:
    return _Keeps(num_classes, activation)


class _Projects(nn.Module):
    """Multiply by random weights that are no parameter of the module and not in its state dict."""

    def __init__(self, num_classes: int, activation, *, buffer: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(*_layers(num_classes, activation))
        weights = torch.randn(num_classes, num_classes)
        if buffer:
            self.register_buffer("weights", weights, persistent=False)
        else:
            self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.weights


def plain_tensor(num_classes: int, activation) -> nn.Module:
    return _Projects(num_classes, activation, buffer=False)


def unsaved_buffer(num_classes: int, activation) -> nn.Module:
    return _Projects(num_classes, activation, buffer=True)


def holds_a_lock(num_classes: int, activation) -> nn.Module:
    return _Keeps(num_classes, activation, threading.Lock())


def holds_a_file(num_classes: int, activation) -> nn.Module:
    return _Keeps(num_classes, activation, sys.__stderr__)


def old_weight_norm(num_classes: int, activation) -> nn.Module:
    flatten, first, act, last = _layers(num_classes, activation)
    return nn.Sequential(flatten, nn.utils.weight_norm(first), act, last)


class _Branches(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return logits + 1 if logits.abs().mean().item() < 0 else logits


def branches(num_classes: int, activation) -> nn.Module:
    return _Branches(nn.Sequential(*_layers(num_classes, activation)))


def looks_at_values(x: Tensor) -> Tensor:
    return 2 * x if x.abs().sum().item() < 0 else x * torch.sigmoid(x)


def noise_of_a_seed(num_classes: int, activation) -> nn.Module:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)

    return nn.Sequential(_Lambda(noisy), *_layers(num_classes, activation))


def other_classes(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(*_layers(7, activation))


def idle(num_classes: int, activation) -> nn.Module:
    net = nn.Sequential(*_layers(num_classes, activation))
    net[0].extra = nn.Linear(3, 3)
    return net


def in_a_list(num_classes: int, activation) -> nn.Module:
    net = nn.Sequential(*_layers(num_classes, activation))
    net[0].layers = [nn.Linear(3, 3)]
    return net


def bound(num_classes: int, activation) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), *_layers(num_classes, activation)[1:])
    outer = _Lambda(None)
    outer.net, outer.function = net, net.forward
    return outer


def quantised(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(
        _Lambda(lambda x: x + ((16 * x).round() / 16 - x).detach()),
        *_layers(num_classes, activation),
    )


def of_the_batch(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(
        _Lambda(lambda x: x - x.mean(0, keepdim=True)), *_layers(num_classes, activation)
    )


def other_images(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 8), activation(), nn.Linear(8, num_classes))


def of_one_size(num_classes: int, activation) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 8), activation(), nn.Linear(8, num_classes)
    )


def other_arguments(num_classes: int, depth: int) -> None: ...


def nothing(num_classes: int, activation) -> None: ...


def by_chance(num_classes: int, activation) -> nn.Module:
    net = nn.Sequential(*_layers(num_classes, activation))
    net[1].weight.data += torch.from_numpy(np.random.default_rng().normal(size=(8, 64))).float()
    return net


IMAGES = np.arange(24 * 64, dtype=np.uint64).astype(np.uint8).reshape(24, 1, 8, 8)
LABELS, NAMES = np.arange(24) % 2, ("a", "b")


def good():
    return IMAGES, LABELS, NAMES


def scaled():
    return IMAGES / 255, LABELS, NAMES


def channels_last():
    return IMAGES.transpose(0, 2, 3, 1), LABELS, NAMES


def zeros_and_ones():
    return IMAGES % 2, LABELS, NAMES


def few():
    return IMAGES[:5], LABELS[:5], NAMES


def three_labels():
    return IMAGES, LABELS + 1, NAMES


def one_class():
    return IMAGES, 0 * LABELS, NAMES


def float_labels():
    return IMAGES, LABELS / 2, NAMES


def pair():
    return IMAGES, LABELS


def broken():
    raise KeyError("no such file")
