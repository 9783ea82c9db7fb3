"""The processes of a sweep of small networks do without torchvision, a second and 160 MB each."""

import subprocess
import sys

import pytest

CODE = """
import sys
import sat_ray.integrations.ray.tasks, sat_ray.integrations.ray.train
from sat_ray.models import build_model
build_model({name!r}, activation="silu", num_classes=10, in_channels=3)
print([name for name in ("torchvision", "timm") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("name", "imported"), [("small_resnet", "[]"), ("resnet18", "['torchvision']")]
)
def test_a_small_network_is_built_without_torchvision(name: str, imported: str) -> None:
    code = CODE.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == imported
