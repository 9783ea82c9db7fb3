"""The processes of a sweep of small networks do without torchvision and torch's compiler.

Each takes a second or two and some 100 MB.
"""

import subprocess
import sys

CODE = """
import sys
import sat_ray.integrations.ray.tasks, sat_ray.integrations.ray.train
from sat_ray.models import build_model
from sat_ray.models.build import misfit
for name in ("small_resnet", "resnet18"):
    model = build_model(name, activation="silu", num_classes=10, in_channels=3)
    assert misfit(model.spec, model.state_dict()) == ""
    print(name, *(one for one in ("torchvision", "timm", "torch._dynamo") if one in sys.modules))
"""


def test_a_small_network_is_built_and_loaded_without_torchvision_and_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["small_resnet", "resnet18 torchvision torch._dynamo"]
