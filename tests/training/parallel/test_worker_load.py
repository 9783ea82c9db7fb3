"""What the processes of a training say they use."""

import time

import pytest
import torch

from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.parallel.worker_load import WorkerLoad


def used_while(work: float, rest: float) -> dict[str, float]:
    """Measure a process that computes for so many processor seconds and then sleeps."""
    load = WorkerLoad(torch.device("cpu"), ProcessGroup())
    begun = time.process_time()
    while time.process_time() - begun < work:
        load.sample()
    time.sleep(rest)
    return load.metrics()


def test_a_process_that_waits_uses_less_of_a_processor_than_one_that_computes() -> None:
    waits = used_while(0.0, 0.3)
    computes = used_while(0.3, 0.0)
    assert waits["system/worker_cpus"] < 0.1 < computes["system/worker_cpus"] <= 1.05


def test_memory_is_that_of_the_process_and_no_gpu_is_invented() -> None:
    before = used_while(0.0, 0.0)
    held = torch.ones(2**26)  # a quarter of a GiB
    after = used_while(0.0, 0.0)
    grown = after["system/worker_memory_gib"] - before["system/worker_memory_gib"]
    assert held.numel() == 2**26 and grown == pytest.approx(0.25, abs=0.05)
    assert after.keys() == {"system/worker_cpus", "system/worker_memory_gib"}
