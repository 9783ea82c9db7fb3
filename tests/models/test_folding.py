"""BatchNorm folded into convolutions is the same function with the same gradient, follows a
training, and reaches every network.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from trainings import small_model, train

from sat_ray.data.split import Split
from sat_ray.models import FoldedConv, build_model, folded, refresh, view
from sat_ray.models.batchnorm_folding import as_product, on_blocks

FAMILIES = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "efficientnet_b0",
    "preact_resnet18",
    "small_resnet",
)


def unsettled(model: nn.Module) -> nn.Module:
    """Give every BatchNorm numbers that folding would notice."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.copy_(
                    torch.rand(module.running_mean.shape, generator=generator) - 0.5
                )
                module.running_var.copy_(
                    torch.rand(module.running_var.shape, generator=generator) + 0.5
                )
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return model.eval()


def values(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Return logits and the gradient of their squared length."""
    point = x.clone().requires_grad_()
    logits = model(point)
    return [logits.detach(), *torch.autograd.grad(logits.square().sum(), point)]


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_on_blocks_is_the_strided_one(size: int, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(size)
    x = (
        torch.rand(2, 3, 16, 20, dtype=torch.float64, generator=generator)
        .contiguous(memory_format=layout)
        .requires_grad_()
    )
    weight = torch.randn(5, 3, size, size, dtype=torch.float64, generator=generator).contiguous(
        memory_format=layout
    )
    ours, theirs = on_blocks(x, weight), F.conv2d(x, weight, stride=2, padding=size // 2)
    torch.testing.assert_close(ours, theirs)
    along = torch.rand(theirs.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad(ours, x, along), torch.autograd.grad(theirs, x, along)
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_product_over_channels_is_the_convolution_of_one_pixel(
    layout: torch.memory_format,
) -> None:
    x = torch.rand(2, 6, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    weight, bias = torch.randn(4, 6, 1, 1, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    found = as_product(x, weight, bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias))
    if layout is torch.channels_last:
        assert found.is_contiguous(memory_format=layout), (
            "the next layer gets the layout that it wants"
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_folds_to_the_same_function_with_the_same_gradient(name: str) -> None:
    model = unsettled(build_model(name, activation="silu", num_classes=10, seed=0)).double()
    copied, x = (
        folded(model),
        torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    after = sum(isinstance(module, FoldedConv) for module in copied.modules())
    assert after >= 0.4 * convolutions, (
        "in a pre-activation block every other convolution has its BatchNorm behind it"
    )
    for ours, theirs in zip(values(copied, x), values(model, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


class Odd(nn.Module):
    """Convolutions with a bias, dilation, groups and a BatchNorm of no weights; one that two layers
    read; one padded by reflection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = (
            nn.Conv2d(2, 4, 3, padding=2, dilation=2, bias=True),
            nn.BatchNorm2d(4, affine=False),
        )
        self.b, self.b_norm = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.c, self.c_norm = (
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(4),
        )
        self.d, self.d_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4)."""
        once = self.b_norm(self.b(self.a_norm(self.a(x)).relu())).relu()
        read_twice = self.d(self.c_norm(self.c(once)).relu())
        value: Tensor = (self.d_norm(read_twice) + read_twice).mean(dim=(2, 3))
        return value


def test_only_what_can_be_folded_is() -> None:
    model = Odd()
    with torch.no_grad():
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    model = model.double().eval()
    copied, x = folded(model), torch.rand(3, 2, 9, 9, dtype=torch.float64)
    assert sum(isinstance(module, FoldedConv) for module in copied.modules()) == 2
    assert sum(isinstance(module, nn.BatchNorm2d) for module in copied.modules()) == 2
    for ours, theirs in zip(values(copied, x), values(model, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_copy_that_follows_is_folded_anew_and_one_that_does_not_stays() -> None:
    model = unsettled(small_model("smoothrelu_learned")).double()
    following, fixed = folded(view(model), follows=True), folded(copy.deepcopy(model))
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    before = values(model, x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.3)
    for one in (following, fixed):
        refresh(one)
    for ours, theirs in zip(values(following, x), values(model, x), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(values(fixed, x), before, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not any(parameter.requires_grad for parameter in following.parameters())


def test_a_training_climbs_the_network_of_the_moment(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a training that climbs the plain view:
    a copy that is not folded anew would soon climb another network.
    """

    def trained() -> list[float]:
        return [
            report.metrics["train/loss"]
            for report in train(small_model(), digits, epochs=3, attack_steps=2)
        ]

    ours = trained()
    monkeypatch.setattr("sat_ray.training.adversary.refresh", lambda model: None)
    stale = trained()
    monkeypatch.setattr("sat_ray.training.adversary.folded", lambda model, **_: model)
    assert ours == pytest.approx(trained(), rel=1e-3)
    assert stale[-1] != pytest.approx(ours[-1], rel=1e-2)


def test_a_network_that_traces_to_another_function_is_attacked_as_it_is(
    digits: Split, caplog: pytest.LogCaptureFixture
) -> None:
    """Its forward pass reads a number that tracing makes a constant."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = small_model("silu").body, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += not isinstance(x, fx.Proxy)
            value: Tensor = self.inner(x) * (1.0 if self.calls else 2.0)
            return value

    def trained(body: nn.Module) -> float:
        model = small_model("silu")
        model.body = body
        return train(model, digits)[-1].metrics["train/loss"]

    ours = trained(Counting())
    assert (
        "BatchNorm is not folded into the network that is attacked: folding: logits" in caplog.text
    )
    assert ours == pytest.approx(trained(small_model("silu").body), rel=1e-3)


def test_a_network_without_batchnorm_is_returned_itself() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    assert folded(model) is model


def test_a_network_with_hooks_is_returned_itself() -> None:
    model = small_model("relu").eval()
    handle = next(iter(model.children())).register_forward_hook(
        lambda module, given, found: 2 * found
    )
    assert folded(model) is model
    handle.remove()
    assert folded(model) is not model
