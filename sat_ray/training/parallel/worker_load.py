"""What the processes of a training or an evaluation use: processors, memory, GPUs."""

from contextlib import suppress
from time import perf_counter, process_time

import torch

from sat_ray.training.parallel.process_group import ProcessGroup

SAMPLE_SECONDS = 10.0  # between two readings of a GPU's utilization
GIB = 2**30


class WorkerLoad:
    """Measure this process from one `begin` to `metrics`.

    device: that it computes on; of a GPU the peak of its memory is measured, and its utilization
    where the package nvidia-ml-py is installed.
    """

    def __init__(self, device: torch.device, process_group: ProcessGroup) -> None:
        from psutil import Process

        self.gpu = device if device.type == "cuda" else None
        self.process_group = process_group
        self.process = Process()
        self.begin()

    def begin(self) -> None:
        """Start to measure anew."""
        self.clock = perf_counter()
        self.processor_seconds = process_time()
        self.last_sample = self.clock
        self.utilizations: list[float] = []
        if self.gpu is not None:
            torch.cuda.reset_peak_memory_stats(self.gpu)

    def sample(self) -> None:
        """Read the GPU's utilization where that is due; call it after every step."""
        now = perf_counter()
        if self.gpu is None or now - self.last_sample < SAMPLE_SECONDS:
            return
        self.last_sample = now
        with suppress(Exception):  # no nvidia-ml-py, or a part of a GPU, which has no utilization
            self.utilizations.append(float(torch.cuda.utilization(self.gpu)))

    def metrics(self) -> dict[str, float]:
        """Return means and maxima over all processes, each of which must call it.

        MLflow shows names with `system/` as system metrics.
        """
        passed = max(perf_counter() - self.clock, 1e-9)
        own = [
            (process_time() - self.processor_seconds) / passed,
            self.process.memory_info().rss / GIB,
            torch.nan if self.gpu is None else torch.cuda.max_memory_allocated(self.gpu) / GIB,
            sum(self.utilizations) / len(self.utilizations) if self.utilizations else torch.nan,
        ]
        of_all = torch.zeros(self.process_group.size, len(own), dtype=torch.float64)
        of_all[self.process_group.rank] = torch.tensor(own, dtype=torch.float64)
        self.process_group.sum(of_all)
        processors, memory, gpu_memory, gpu_percent = of_all.unbind(dim=1)
        found = {
            "system/worker_cpus": processors.mean(),
            "system/worker_memory_gib": memory.max(),
            "system/worker_gpu_memory_gib": gpu_memory.max(),
            "system/worker_gpu_percent": gpu_percent.nanmean(),
        }
        return {name: float(value) for name, value in found.items() if not value.isnan()}
