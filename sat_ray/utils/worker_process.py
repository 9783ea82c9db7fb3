"""What a process that belongs to a sweep sets for itself before it computes."""

import ctypes
import os

import torch

M_TRIM_THRESHOLD = -1  # the numbers of glibc's mallopt(3)
M_MMAP_THRESHOLD = -3
KEPT_BYTES = 64 * 2**20
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")


def set_up_worker(*, threads: int) -> None:
    """Use so many CPU threads, and keep the memory that a pass frees for the next one."""
    torch.set_num_threads(threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let up to KEPT_BYTES of freed memory stay with the process.

    glibc gives the memory of a pass back to the system when its tensors are freed, and the system
    fills every page with zeros when the next pass takes it again. On small networks that was a
    fifth of the processor time. Numbers do not change. Nothing is set where the environment has
    chosen already, or where there is no glibc.
    """
    if any(os.environ.get(name) for name in OWN_CHOICE):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
