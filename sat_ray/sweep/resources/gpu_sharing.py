"""How much of a GPU a piece of work needs, and how many such pieces share one."""

import math

import torch

CONTEXT_BYTES = (
    1 << 30
)  # of a process beside torch's own memory: CUDA's context and its libraries, on the safe side
HEADROOM = 0.1  # left free: other weights or another activation may need a little more
MOST = 4  # pieces on one GPU: they fill each other's pauses, and more than a few only take turns


def memory_needed(device: torch.device) -> float | None:
    """Return the largest share of the GPU's memory that this process has needed so far, in (0, 1].

    None on a CPU.
    """
    if device.type != "cuda":
        return None
    _, total = torch.cuda.mem_get_info(device)
    return min(1.0, (torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES) / total)


def fitting_share(needed: float) -> float:
    """Return the share of a GPU for tasks that each need this share of its memory.

    The share is 1, 1/2, 1/3 or 1/4.
    """
    return 1 / max(1, min(MOST, math.floor((1 - HEADROOM) / needed)))
