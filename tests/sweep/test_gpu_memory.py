"""How many evaluation tasks share a GPU: by the memory that one was seen to need."""

import dataclasses

import pytest
import torch

from sat_ray.integrations.ray.tasks import sharing
from sat_ray.sweep.config import ResourceSettings
from sat_ray.sweep.recipes.digits import digits_smoke
from sat_ray.sweep.records.store import Record
from sat_ray.sweep.resources.bundles import bundles
from sat_ray.sweep.resources.gpu_sharing import fitting_share, memory_needed

WHOLE = ResourceSettings(gpus_per_evaluation=1, share_gpus=True, accelerator="H200")


def record(**payload: float) -> Record:
    """Return the record of a task that had a GPU alone."""
    return Record(
        stage="evaluate", key="k", inputs={}, payload=payload, seconds=1.0, created=0.0, code={}
    )


@pytest.mark.parametrize(
    ("needed", "share"),
    [
        (0.02, 1 / 4),
        (0.225, 1 / 4),
        (0.23, 1 / 3),
        (0.31, 1 / 2),
        (0.45, 1 / 2),
        (0.46, 1),
        (0.95, 1),
        (1.0, 1),
    ],
)
def test_so_many_share_a_gpu_as_fit_into_nine_tenths_of_its_memory_up_to_four(
    needed: float, share: float
) -> None:
    assert fitting_share(needed) == share
    assert fitting_share(needed) * 1.0 >= needed / 0.9 or share in (1 / 4, 1)
    assert sharing(WHOLE, record(gpu_memory=needed)) == dataclasses.replace(
        WHOLE, share_gpus=False, gpus_per_evaluation=share
    )


def test_where_nothing_was_measured_each_task_keeps_its_gpu() -> None:
    assert memory_needed(torch.device("cpu")) is None
    assert sharing(WHOLE, record()).gpus_per_evaluation == 1


@pytest.mark.parametrize("gpus", [0, 0.5, 2])
def test_a_share_is_measured_from_a_whole_gpu(gpus: float) -> None:
    with pytest.raises(
        ValueError,
        match=rf"resources.gpus_per_evaluation must be 1 with --resources.share-gpus, got {gpus:g}",
    ):
        ResourceSettings(gpus_per_evaluation=gpus, share_gpus=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_memory_of_a_process_is_what_torch_reserved_and_its_context() -> None:
    device = torch.device("cuda", 0)
    block = torch.zeros(1 << 28, dtype=torch.uint8, device=device)
    needed, (_, total) = memory_needed(device), torch.cuda.mem_get_info(device)
    assert (
        needed is not None
        and (len(block) + (1 << 30)) / total <= needed < (len(block) + (1 << 30)) / total + 0.1
    )


def test_a_dry_run_says_who_shares() -> None:
    config = dataclasses.replace(
        digits_smoke(), resources=dataclasses.replace(WHOLE, accelerator="H200")
    )
    (said,) = (str(demand) for demand in bundles(config) if demand.stage == "evaluate")
    assert said.endswith(
        "x {CPU 1, GPU 1}: the first has its GPU alone, of the others as many share one as its "
        "memory then shows to fit"
    )
