"""Model how data-parallel training scales, from the measured time of a step; nothing is measured.

A ring of W workers adds up G bytes of gradients in 2 (W - 1) / W * G / bandwidth + 2 (W - 1) *
latency seconds (Patarasuk and Yuan 2009). DDP sends while the backward pass of the update still
computes, which is two thirds of a plain step; only what takes longer adds to the step. The attack
exchanges nothing, which is why adversarial training scales better than plain training.
"""

BANDWIDTH = 50e9  # bytes per second and worker: one 400 Gbit/s link
LATENCY = 10e-6  # seconds per hop
WORKERS = (8, 64, 256)
BACKWARD_SHARE = 2 / 3


def all_reduce_seconds(
    size: float, *, workers: int, bandwidth: float = BANDWIDTH, latency: float = LATENCY
) -> float:
    """Return the seconds in which a ring of workers adds up `size` bytes."""
    return 2 * (workers - 1) / workers * size / bandwidth + 2 * (workers - 1) * latency


def efficiency(step: float, plain: float, size: float, *, workers: int) -> float:
    """Return the share of perfect scaling, in (0, 1]. step, plain: seconds of an adversarial
    and of a plain step of one worker.
    """
    waited = max(0.0, all_reduce_seconds(size, workers=workers) - BACKWARD_SHARE * plain)
    return step / (step + waited)
