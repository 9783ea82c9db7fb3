"""Common corruptions stay in [0, 1], grow with severity, and depend on seed and image id alone."""

import pytest
import torch
from scipy.stats import poisson
from torch import Tensor
from torch.nn import functional as F
from trainings import train_small

from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.evaluation.corruptions.accuracy import corruption_counts
from sat_ray.evaluation.corruptions.kinds import KINDS, SEVERITIES, _poisson, corrupted
from sat_ray.evaluation.corruptions.summary import accuracies, added, mean_accuracy
from sat_ray.threat import ThreatModel
from sat_ray.utils.randomness import Randomness

COUNT = 12


def pictures(channels: int, side: int) -> Tensor:
    """Return clouds with details of every size, (COUNT, channels, side, side) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for cells in (3, 7, 13, 29):
        grid = torch.rand(COUNT, channels, cells, cells, generator=generator)
        parts.append(F.interpolate(grid, size=(side, side), mode="bilinear") * cells**-0.5)
    total = sum(parts, torch.zeros(()))
    low, high = total.min(), total.max()
    return ((total - low) / (high - low) * 255).round() / 255


def streams(rows: Tensor | None = None, seed: int = 0) -> Randomness:
    return Randomness(seed, torch.arange(COUNT) if rows is None else rows)


def test_there_are_fifteen_kinds_with_five_strengths_each() -> None:
    assert len(KINDS) == 15
    for _, small, large in KINDS.values():
        assert len(small) == len(large) == SEVERITIES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (3, 72)])
def test_pixels_stay_in_range_and_the_distance_grows_with_severity(
    kind: str, channels: int, side: int
) -> None:
    x = pictures(channels, side)
    distances = []
    for severity in range(SEVERITIES):
        changed = corrupted(x, streams(), kind=kind, severity=severity)
        assert changed.dtype == torch.uint8 and changed.shape == x.shape
        distances.append(float((to_pixels(changed) - x).square().mean().sqrt()))
    assert distances == sorted(distances), distances
    assert distances[-1] > 1.2 * distances[0] > 0.0, distances


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_the_same_in_every_batch_and_by_its_id(kind: str) -> None:
    x = pictures(3, 32)
    whole = corrupted(x, streams(), kind=kind, severity=3)
    assert torch.equal(corrupted(x, streams(), kind=kind, severity=3), whole)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    for rows in order.split(5):
        assert torch.equal(corrupted(x[rows], streams(rows), kind=kind, severity=3), whole[rows])
    random = kind not in {
        *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"),
    }
    other = corrupted(x, streams(torch.arange(COUNT) + 100), kind=kind, severity=3)
    assert torch.equal(other, whole) != random
    other = corrupted(x, streams(seed=1), kind=kind, severity=3)
    assert torch.equal(other, whole) != random


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_black_white_and_tiny_images_are_corrupted_too(kind: str, level: float) -> None:
    for side in (1, 8):
        x = torch.full((COUNT, 1, side, side), level)
        assert corrupted(x, streams(), kind=kind, severity=4).shape == x.shape


def test_counts_of_photons_are_of_a_poisson_distribution() -> None:
    draw = Randomness.of(0, range(4000)).uniform("test", (1, 1, 1))
    for mean in (0.0, 0.5, 3.0, 40.0):
        found = _poisson(torch.full_like(draw, mean), draw, most=120).flatten().double().numpy()
        wanted = poisson.ppf(draw.flatten().double().numpy(), mean).clip(min=0)
        assert (abs(found - wanted) > 0).mean() < 0.002  # float32 at the edges of the steps


def test_noise_has_the_strength_that_the_paper_gives_it() -> None:
    x = torch.full((COUNT, 3, 64, 64), 0.5)
    noise = to_pixels(corrupted(x, streams(), kind="gaussian_noise", severity=0)) - x
    assert abs(float(noise.std()) - 0.08) < 0.002
    changed = corrupted(x, streams(), kind="impulse_noise", severity=4)
    assert abs(float((changed == 0).float().mean()) - 0.135) < 0.005
    assert abs(float((changed == 255).float().mean()) - 0.135) < 0.005
    shot = to_pixels(corrupted(x, streams(), kind="shot_noise", severity=3)) * 5
    cut = sum(min(count, 5) * poisson.pmf(count, 2.5) for count in range(30))
    assert abs(float(shot.mean()) - cut) < 0.02


def test_accuracy_under_corruptions_is_counted_on_digits_whatever_the_shards(
    digits: Split,
) -> None:
    model = train_small(digits, ThreatModel("linf", 0.05), activation="silu", epochs=4)
    held_out = digits.take(slice(1000, 1100))
    settings = {"seed": 0, "slots": 16, "device": torch.device("cpu")}
    whole = corruption_counts(model, held_out, **settings)  # type: ignore[arg-type]
    parts = [
        corruption_counts(model, held_out.take(rows), **settings)  # type: ignore[arg-type]
        for rows in (slice(0, 37), slice(37, 100))
    ]
    assert added(parts) == whole
    found = accuracies(whole, 100)
    assert 0.3 < mean_accuracy(found) < 1.0
    assert mean_accuracy({"a": [0.5, 1.0], "b": [0.0, 0.5]}) == 0.5
    clean = (model(to_pixels(held_out.images)).argmax(1) == held_out.labels).float().mean()
    assert found["contrast"][4] <= float(clean)
