"""A worker keeps the memory that a pass frees; counted in pages that the system had to give."""

import os
import subprocess
import sys

import pytest

PASSES = """
import resource
import torch
from torch import nn
from sat_ray.utils.worker_process import set_up_worker

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {set_up}:
    set_up_worker(threads=1)
else:
    torch.set_num_threads(1)
net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()) * 6)
x = torch.rand(64, 8, 28, 28, requires_grad=True)

def passes(count):
    for _ in range(count):
        torch.autograd.grad(net(x).sum(), x)

passes(2)
before = faults()
passes(5)
print(faults() - before)
"""


def pages(*, set_up: bool, **variables: str) -> int:
    """Return how many pages five passes took from the system."""
    done = subprocess.run(
        [sys.executable, "-c", PASSES.format(set_up=set_up)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_worker_takes_no_page_twice_unless_the_environment_says_otherwise() -> None:
    usual = pages(set_up=False)
    assert usual > 5_000
    # a busy system may take pages back by itself: of some tries the least is the worker's own need
    assert min(pages(set_up=True) for _ in range(3)) < usual / 20
    assert pages(set_up=True, MALLOC_TRIM_THRESHOLD_="131072") > usual / 2
