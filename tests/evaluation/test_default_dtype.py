"""A user's module may set torch's default dtype; no number of an evaluation depends on it."""

from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from sat_ray.activations.registry import make_activation
from sat_ray.attacks import AttackSpec, cascade, pgd
from sat_ray.data.split import Split
from sat_ray.evaluation.robustness import calibrate_attacks, evaluate
from sat_ray.models.export import export_model
from sat_ray.threat import ThreatModel

COUNT, SLOTS = 10, 4
LINF, L2 = ThreatModel("linf", 0.1), ThreatModel("l2", 0.8)


class Small(nn.Module):
    """A network of two layers that is quick on a busy machine."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 16)
        self.activation = make_activation("silu")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


@pytest.fixture(scope="module")
def images(small: nn.Module) -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(pixels, small(pixels.float() / 255).argmax(1), torch.arange(COUNT))


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


SPECS = [
    AttackSpec(threat_model=LINF, steps=3, step_size=0.05, restarts=2),
    AttackSpec(threat_model=L2, steps=3, step_size=0.4, loss="dlr"),
    AttackSpec(threat_model=LINF, steps=3, step_size=0.05, final_iterate=True),
    AttackSpec(threat_model=LINF, steps=3, step_size=0.05, gradient="bf16"),
    *cascade(LINF, num_classes=5, steps=4, queries=6),
    *cascade(L2, num_classes=5, steps=4, queries=6),
]


def outcomes(model: nn.Module, images: Split, spec: AttackSpec) -> pa.Table:
    measured = calibrate_attacks(model, images, attacks=[spec], slots=SLOTS)
    given = (images.images, images.labels, images.image_ids)
    return evaluate(model, *given, attacks=[spec], slots=SLOTS, calibrations=measured)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.threat_model.norm} {spec.name}")
def test_outcomes_do_not_depend_on_the_default_dtype(
    spec: AttackSpec, small: nn.Module, images: Split
) -> None:
    expected = outcomes(small, images, spec)
    torch.set_default_dtype(torch.float64)
    try:
        assert outcomes(small, images, spec) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_plain_attack_and_the_export_stay_float32(
    small: nn.Module, images: Split, float64_by_default: None
) -> None:
    x = images.images.float() / 255
    found = pgd(small, x, images.labels, threat_model=LINF, step_size=0.05, steps=2, restarts=2)
    assert found.dtype == torch.float32
    _, parity = export_model(small, shape=(1, 8, 8), kind="pt2")
    assert parity.logits <= parity.bound
    assert make_activation("smoothrelu_learned").beta.dtype == torch.float32
