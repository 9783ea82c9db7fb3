"""Which kernel torch.compile takes for a product over channels on a GPU: by its shape alone, so that every worker takes the same.

A convolution of one pixel that widens the channels is bound by what it writes, and the activation and the sum behind it read that again. A
product from torch.compile's own template does them on the way out. Where the channels become fewer, the library's product is faster. Left
alone, torch would time every candidate on every worker, which takes minutes and need not end alike; here nothing is timed.
"""

from functools import cache
from typing import Any

ASKED = {
    "max_autotune_gemm": True,
    "max_autotune_gemm_backends": "ATEN,TRITON",
    "benchmark_epilogue_fusion": False,
}
TILE = ("BLOCK_K=64,", "BLOCK_M=64,", "BLOCK_N=128,", "num_warps=4")
OLDEST = (8, 0)
FEWEST_ROWS = 4096
FEWEST_CHANNELS = 64


def kernel_options(capability: tuple[int, int]) -> dict[str, Any]:
    """Return the options of torch.compile under which `by_shape` chooses.

    capability: of the GPU, as torch.cuda.get_device_capability tells. None for a GPU without room for the tile in its shared memory (before
    8.0), and where this torch lets nobody choose.
    """
    return dict(ASKED) if capability >= OLDEST and _chooses() else {}


@cache
def _chooses() -> bool:
    from torch._inductor import select_algorithm  # a second to import, for those who compile

    if not hasattr(select_algorithm, "add_preprocessing_fn"):
        return False
    select_algorithm.add_preprocessing_fn(by_shape)
    return True


def by_shape(choices: list[Any]) -> list[Any]:
    """Leave one of the kernels that torch.compile could take; all of them where somebody else asked for the best."""
    from torch._inductor import config
    from torch._inductor.select_algorithm import ExternKernelCaller

    if config.max_autotune or not config.max_autotune_gemm:
        return choices
    library = [choice for choice in choices if isinstance(choice, ExternKernelCaller)]
    fused = [
        choice
        for choice in choices
        if choice.name.startswith("triton_mm") and all(part in choice.description for part in TILE)
    ]
    if library and fused and _widens(choices[0]):
        return fused[:1]
    return library[:1] or choices


def _widens(choice: Any) -> bool:
    """Say whether a product (M, K) x (K, N) of many rows has more columns than it sums over."""
    rows, columns = (int(size) for size in choice.layout.size[-2:])
    summed = int(choice.input_nodes[-2].get_size()[-1])
    return rows >= FEWEST_ROWS and columns > summed >= FEWEST_CHANNELS
