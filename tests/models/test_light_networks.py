"""The processes of a sweep of small networks do without torchvision, a second and 160 MB each."""

import subprocess
import sys

CODE = """
import sys
import sat_ray.integrations.ray.tasks, sat_ray.integrations.ray.train
from sat_ray.models import build_model
for name in ("small_resnet", "resnet18"):
    build_model(name, activation="silu", num_classes=10, in_channels=3)
    print(name, *(one for one in ("torchvision", "timm") if one in sys.modules))
"""


def test_a_small_network_is_built_without_torchvision() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["small_resnet", "resnet18 torchvision"]
