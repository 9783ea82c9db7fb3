"""Fixtures shared by all tests: real digits, and one small model adversarially trained on them, once per session."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits

from sat_ray.attacks import PGD
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.losses import cross_entropy
from sat_ray.models import Normalized, build_model, view
from sat_ray.randomness import Randomness, permutation
from sat_ray.threat import ThreatModel

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep torch on one core: the kernels are tiny, and a fixed thread count fixes their rounding."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> Split:
    """Return scikit-learn's 1,797 handwritten digits as uint8 (N, 1, 8, 8); image_id = index."""
    bundle = load_digits()
    images = np.rint(bundle.images * 255 / 16).astype(np.uint8)[:, None]
    return Split(torch.from_numpy(images), torch.from_numpy(bundle.target).long(), torch.arange(len(images)))


@pytest.fixture(scope="session")
def digits_threat_model() -> ThreatModel:
    """Return a ball large enough to break about half of the digits, small enough to leave survivors."""
    return ThreatModel("linf", 40 / 255)


def train_small(digits: Split, threat_model: ThreatModel, *, activation: str, epochs: int = 5) -> Normalized:
    """Train a small_resnet of width 8 on the first 900 digits with PGD-1; (train, attack, update) and nothing else."""
    model = build_model("small_resnet", activation=activation, num_classes=10, in_channels=1, width=8, mean=(0.3,), std=(0.35,), seed=0)
    attacker = view(model)
    attack = PGD(threat_model=threat_model, steps=1, step_size=threat_model.epsilon)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        for rows in permutation(900, seed=0, epoch=epoch).split(50):
            batch = digits.take(rows)
            x_adv = attack.run(attacker, to_pixels(batch.images), batch.labels, Randomness(0, batch.image_ids), step=epoch)
            optimizer.zero_grad()
            cross_entropy(model(x_adv), batch.labels).mean().backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def digits_model(digits: Split, digits_threat_model: ThreatModel) -> Normalized:
    """Return a relu model in inference mode; tests must not change it."""
    return train_small(digits, digits_threat_model, activation="relu")


@pytest.fixture(scope="session")
def held_out(digits: Split) -> Split:
    """Return 77 digits that the model was not trained on: two full blocks of 32 lanes and a ragged third."""
    return digits.take(slice(1000, 1077))
