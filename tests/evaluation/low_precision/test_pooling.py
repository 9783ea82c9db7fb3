"""The pooling kernels for GPUs: interpreted on this CPU as torch pools, compiled for a GPU of
today, and put where they belong.
"""

import os
import subprocess
import sys

import pytest
from repository import ROOT, TESTS
from torch import nn

pooling = pytest.importorskip(
    "sat_ray.evaluation.low_precision.triton_pooling", reason="needs Triton"
)


def test_triton_interprets_the_kernels_as_torch_pools() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        str(TESTS / "helpers" / "interpreted_pooling.py"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("kernel", "kinds"), [("_largest", ("fp16", "fp16", "i8")), ("_gather", ("bf16", "i8", "bf16"))]
)
def test_triton_compiles_the_kernels_for_a_hopper_gpu_without_spilling(
    kernel: str, kinds: tuple[str, ...]
) -> None:
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(pooling, kernel)
    *numbers, block = function.arg_names
    types = [f"*{kind}" for kind in kinds] + ["i32"] * (len(numbers) - len(kinds))
    source = ASTSource(
        fn=function,
        signature=dict(zip(numbers, types, strict=True)) | {block: "constexpr"},
        constexprs={block: pooling.BLOCK},
    )
    built = build(source, target=GPUTarget("cuda", 90, 32))
    assert "ld.global" in built.asm["ptx"]
    assert ".local" not in built.asm["ptx"], "everything is kept in registers"


def test_that_pooling_alone_is_replaced() -> None:
    kept = [
        nn.MaxPool2d(3, stride=2),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1),
    ]
    model = nn.Sequential(
        nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1)),
        nn.MaxPool2d((3, 3), (2, 2), (1, 1)),
        *kept,
    )
    found = pooling.with_own_pooling(model)
    assert found is model
    assert [type(module) for module in model] == [nn.Sequential, pooling.MaxPool, *map(type, kept)]
    assert isinstance(model[0][0], pooling.MaxPool)
