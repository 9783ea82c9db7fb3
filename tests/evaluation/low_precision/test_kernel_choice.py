"""Which kernel a product gets follows from its shape alone,
and nobody else's products are touched.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import config, select_algorithm
from torch._inductor.ir import FixedLayout, InputBuffer
from torch._inductor.select_algorithm import (
    ExternKernelCaller,
    ExternKernelChoice,
    TritonTemplateCaller,
)

from sat_ray.evaluation.low_precision import gemm_choice as kernel_choice
from sat_ray.evaluation.low_precision.gemm_choice import TILE, by_shape, kernel_options
from sat_ray.utils import compile as compilation

HOPPER = (9, 0)
HERE = torch.device("cpu")  # the rule looks at shapes, not at devices


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.mm(x, weight)


LIBRARY = ExternKernelChoice(_product, name="product_of_a_test", has_out_variant=False)


def choices(rows: int, summed: int, columns: int, *, kind: str = "triton_mm") -> list[Any]:
    """Return what torch.compile offers for a product, the library's kernel first."""
    sides = ((rows, summed), (summed, columns))
    inputs = [
        InputBuffer(name=f"x{i}", layout=FixedLayout(HERE, torch.float16, side))
        for i, side in enumerate(sides)
    ]
    layout = FixedLayout(HERE, torch.float16, (rows, columns))
    request: Any = SimpleNamespace(num_stages=3, num_warps=4, module_cache_key="", module_path="")
    tiles = (
        (f"{kind}_0", "BLOCK_K=16, BLOCK_M=32, num_warps=2"),
        (f"{kind}_1", " ".join(TILE)),
        (f"{kind}_2", " ".join(TILE)),
    )
    return [
        ExternKernelCaller(LIBRARY, inputs, layout, has_out_variant=False),
        *(
            TritonTemplateCaller(name, inputs, layout, None, description, request)
            for name, description in tiles
        ),
    ]


@pytest.fixture
def asked() -> Iterator[None]:
    """Compile as fast copies are compiled on a GPU."""
    with config.patch(kernel_choice.ASKED):
        yield


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("rows", "summed", "columns", "expected"),
    [
        (1_605_632, 64, 256, "triton_mm_1"),
        (25_088, 512, 2048, "triton_mm_1"),
        (1_605_632, 256, 64, "product_of_a_test"),
        (1_605_632, 64, 64, "product_of_a_test"),
        (512, 2048, 4096, "product_of_a_test"),
        (1_605_632, 10, 2048, "product_of_a_test"),
    ],
)
def test_a_product_that_widens_many_rows_takes_the_template_and_every_other_the_library(
    rows: int, summed: int, columns: int, expected: str
) -> None:
    assert [choice.name for choice in by_shape(choices(rows, summed, columns))] == [expected]


@pytest.mark.usefixtures("asked")
def test_a_convolution_takes_the_library_and_where_only_templates_are_offered_all_stay() -> None:
    offered = choices(100_000, 64, 256, kind="triton_convolution2d")
    assert [choice.name for choice in by_shape(offered)] == ["product_of_a_test"]
    assert by_shape(offered[1:]) == offered[1:]


def test_what_others_compile_is_left_alone() -> None:
    offered = choices(100_000, 64, 256)
    assert by_shape(offered) is offered
    with config.patch(max_autotune=True, max_autotune_gemm=True):
        assert by_shape(offered) is offered


def test_torch_knows_every_option_and_asks_once() -> None:
    assert kernel_options(HOPPER) == kernel_options(HOPPER) == kernel_choice.ASKED
    torch.compile(lambda x: x, options=kernel_options(HOPPER))  # RuntimeError on an unknown one
    assert select_algorithm.get_algorithm_selector_cache().preprocessing_fns.count(by_shape) == 1


def test_a_gpu_of_little_shared_memory_keeps_torchs_choice() -> None:
    assert kernel_options((7, 5)) == {}


def test_other_backends_get_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    assert compilation.compiled(lambda x: x + 1, options=kernel_options(HOPPER))(
        torch.ones(2)
    ).tolist() == [2, 2]


def test_an_older_torch_chooses_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select_algorithm, "add_preprocessing_fn")
    kernel_choice._chooses.cache_clear()
    try:
        assert kernel_options(HOPPER) == {}
    finally:
        kernel_choice._chooses.cache_clear()
        select_algorithm.clear_preprocessing_fns()
