"""Weights that no pixel reaches: found by arithmetic that autograd confirms, and gradients of 0
kept there where bf16 kernels do not.
"""

import pytest
import torch
from torch import nn
from trainings import train

from sat_ray.models import build_model, view
from sat_ray.training.parallel.onednn_workaround import KernelReach, unreached

CPU = torch.device("cpu")
LAYERS = [
    pytest.param(
        kernel,
        stride,
        padding,
        dilation,
        size,
        id=f"kernel {kernel}, stride {stride}, padding {padding}, x{dilation}, on {size}",
    )
    for kernel, stride, padding, dilation, sizes in [
        (3, 1, 1, 1, (1, 2)),
        (3, 2, 1, 1, (1, 2, 3)),
        (5, 1, 2, 1, (1, 2, 3)),
        (5, 2, "valid", 1, (5, 6)),
        (7, 1, "same", 1, (3, 4)),
        (3, 1, 2, 2, (1, 2, 3, 5)),
    ]
    for size in sizes
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "size"), LAYERS)
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_that_no_pixel_reaches_are_those_without_a_gradient(
    kernel: int, stride: int, padding: int | str, dilation: int, size: int, axis: int
) -> None:
    conv = nn.Conv2d(
        1, 1, kernel, stride=stride, padding=padding, dilation=dilation, bias=False
    ).double()
    height, width = (size, 9) if axis == 0 else (9, size)
    conv(
        torch.rand(1, 1, height, width, dtype=torch.float64) + 0.1
    ).sum().backward()  # positive everywhere: no sum is 0 by chance
    assert conv.weight.grad is not None
    found = unreached(conv.float(), (1, height, width)).get(
        "", torch.zeros(kernel, kernel, dtype=torch.bool)
    )
    assert torch.equal(found, conv.weight.grad[0, 0] == 0)


def test_a_gradient_is_0_where_no_pixel_reaches_and_untouched_elsewhere_for_those_images() -> None:
    model = build_model("resnet18", activation="relu", num_classes=3, seed=0).train()
    conv = model.body.layer4[0].conv2  # type: ignore[union-attr, index]
    reach = KernelReach(model, view(model), precision="bf16", device=CPU)
    garbage = torch.full_like(conv.weight, torch.nan)
    for side, reached in ((32, (1,)), (96, (0, 1, 2))):  # 1 x 1 and 3 x 3 pixels there
        reach.at((3, side, side))
        conv.weight.grad = None
        (conv.weight * garbage).sum().backward()
        rows = torch.tensor([row in reached for row in range(3)])
        expected = torch.where(rows[:, None] & rows[None, :], garbage, 0.0)
        torch.testing.assert_close(conv.weight.grad, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_network_trains_on_images_too_small_for_it(precision: str, digits: object) -> None:
    """Digits of 8 pixels into a network that halves its images five times: from its third group of
    layers on they have one pixel.
    """
    model = build_model(
        "resnet18",
        activation="silu",
        num_classes=10,
        in_channels=1,
        seed=0,
        mean=(0.3,),
        std=(0.35,),
    )
    report = train(model, digits, images=64, precision=precision)[-1]  # type: ignore[arg-type]
    assert all(bool(tensor.isfinite().all()) for tensor in report.state.weights.values())
    kernel = report.state.weights["body.layer4.0.conv1.weight"]
    start = build_model(
        "resnet18", activation="silu", num_classes=10, in_channels=1, seed=0
    ).state_dict()["body.layer4.0.conv1.weight"]
    shrunk = (kernel / start)[:, :, 0, 0]  # by weight decay alone: the same for every weight
    assert float(shrunk.max() - shrunk.min()) < 1e-3 and not torch.allclose(
        kernel[:, :, 1, 1], start[:, :, 1, 1], rtol=0.01
    )


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU with AVX512-BF16"
)
def test_all_other_gradients_of_bf16_convolutions_are_right() -> None:
    torch.manual_seed(0)
    for size, kernel, stride in [(1, 3, 2), (1, 5, 1), (2, 7, 1), (2, 3, 2)]:
        conv = nn.Conv2d(64, 64, kernel, stride=stride, padding=kernel // 2, bias=False).to(
            memory_format=torch.channels_last
        )
        x = torch.randn(4, 64, size, size).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            conv(x).float().square().sum().backward()
        found, exact = conv.weight.grad, conv.weight.detach().double().contiguous().requires_grad_()
        torch.nn.functional.conv2d(
            x.double(), exact, stride=stride, padding=kernel // 2
        ).square().sum().backward()
        assert found is not None and exact.grad is not None
        here = exact.grad != 0
        assert float((found.double() - exact.grad)[here].norm() / exact.grad.norm()) < 0.02
