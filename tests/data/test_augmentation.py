"""Crops and flips of whole batches are torchvision's of single images, and depend on seed,
epoch and image id alone.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop, functional
from trainings import record_attacks, small_model, train

from sat_ray.data.augmentation.crops import augment, flips, rectangles, shifts
from sat_ray.data.choices import AUGMENTATIONS, PADDING, check_augmentation
from sat_ray.data.split import Split
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.randomness import Randomness

COUNT = 96
REAL = [name for name in AUGMENTATIONS if name != "none"]


def pictures(channels: int = 3, height: int = 20, width: int = 24) -> Tensor:
    """Return smooth pictures with noise, (COUNT, channels, height, width) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, channels, 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise = torch.rand(COUNT, channels, height, width, generator=generator)
    return (230 * smooth + 25 * noise).to(torch.uint8)


def streams(ids: Any = range(COUNT), seed: int = 3) -> Randomness:
    return Randomness.of(seed, list(ids))


def expected(name: str, image: Tensor, index: int, epoch: int) -> Tensor:
    """Return what torchvision makes of one image, told where to cut and whether to flip,
    as float.
    """
    rng, (height, width) = streams(), image.shape[-2:]
    if name == "crop_flip":
        top, left = shifts(rng, epoch=epoch)[index].tolist()
        changed = functional.crop(
            functional.pad(image, [PADDING]), top, left, height, width
        ).float()
    else:
        part = rectangles(rng, height, width, epoch=epoch)[index].tolist()
        changed = functional.resized_crop(image.float(), *part, [height, width], antialias=True)
    return functional.horizontal_flip(changed) if flips(rng, epoch=epoch)[index] else changed


@pytest.mark.parametrize("name", REAL)
def test_a_batch_is_changed_as_torchvision_changes_its_images_one_by_one(name: str) -> None:
    images = pictures()
    changed = augment(images, streams(), name=name, epoch=2)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape
    alone = torch.stack([expected(name, image, index, 2) for index, image in enumerate(images)])
    if name == "crop_flip":
        assert torch.equal(changed, alone.to(torch.uint8))
    else:
        assert (
            changed.float() - alone
        ).abs().max() <= 0.501  # half a level of rounding, and float32's own error


def depends_on_seed_epoch_and_id_alone(
    change: Callable[[Tensor, Randomness, int], Tensor], *, share: float = 0.9
) -> bool:
    """Return whether a change of images, with random numbers and an epoch, is the same in any
    batch, and another for that share of them in another epoch, of another seed, or with other ids.
    """
    images, order = pictures(), torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    whole = change(images, streams(), 1)
    same = all(
        torch.equal(change(images[rows], streams(rows.tolist()), 1), whole[rows])
        for rows in order.split(7)
    )
    others = ((streams(), 2), (streams(seed=4), 1), (streams(range(COUNT, 2 * COUNT)), 1))
    return same and all(
        bool((change(images, *other) != whole).flatten(1).any(dim=1).float().mean() > share)
        for other in others
    )


@pytest.mark.parametrize("name", REAL)
def test_what_happens_to_an_image_depends_on_seed_epoch_and_id_and_not_on_its_batch(
    name: str,
) -> None:
    assert depends_on_seed_epoch_and_id_alone(
        lambda images, rng, epoch: augment(images, rng, name=name, epoch=epoch)
    )


def test_shifts_and_flips_are_uniform() -> None:
    rng, count = streams(range(20_000)), 20_000
    found, sides = shifts(rng, epoch=0), 2 * PADDING + 1
    counts = torch.bincount(found[:, 0] * sides + found[:, 1], minlength=sides**2).double()
    statistic = ((counts - count / sides**2) ** 2 / (count / sides**2)).sum()
    assert 42 < statistic < 133  # chi-square with 80 degrees of freedom, all but 2e-4 of it
    assert abs(flips(rng, epoch=0).double().mean() - 0.5) < 4 * 0.5 / count**0.5


@pytest.mark.parametrize(("height", "width"), [(224, 224), (60, 200)])
def test_rectangles_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Quantiles of area and aspect ratio over 4,000 draws each; an image as long as the second
    often falls back to its middle.
    """
    count = 4000
    ours = rectangles(streams(range(count)), height, width, epoch=0).double()
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    torch.manual_seed(0)
    transform, picture = RandomResizedCrop(8), torch.zeros(3, height, width)
    drawn = [transform.make_params([picture]) for _ in range(count)]
    theirs = torch.tensor(
        [[one[key] for key in ("top", "left", "height", "width")] for one in drawn]
    ).double()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    measures = (
        lambda part: part[:, 2] * part[:, 3] / (height * width),
        lambda part: (part[:, 3] / part[:, 2]).log(),
        lambda part: part[:, 0] / height,
        lambda part: part[:, 1] / width,
    )
    for measure in measures:
        assert (
            measure(ours).quantile(levels) - measure(theirs).quantile(levels)
        ).abs().max() < 0.04
    fallback = torch.tensor((0, 60, 60, 80) if width == 200 else (0, 0, 224, 224))
    shares = [(parts == fallback).all(dim=1).double().mean() for parts in (theirs, ours)]
    assert (shares[0] - shares[1]).abs() < 0.03


def test_training_sees_other_crops_in_every_epoch_and_the_same_on_any_number_of_groups(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = record_attacks(monkeypatch)
    changes: dict[str, Any] = {"attack_random_start": False, "augmentation": "crop_flip"}
    train(small_model(), digits, **changes)
    starts = seen.starts()
    assert {epoch for epoch, _ in starts} == {0, 1}
    assert sum(not torch.equal(starts[0, one], starts[1, one]) for one in seen.ids(0)) > 120
    for (epoch, one), start in starts.items():
        changed = augment(
            digits.images[one : one + 1], Randomness.of(0, [one]), name="crop_flip", epoch=epoch
        )
        assert torch.equal(start, changed[0].float() / 255)
    seen.calls.clear()
    train(small_model(), digits, **changes, batchnorm_group_size=32)
    assert all(torch.equal(start, starts[key]) for key, start in seen.starts().items())


@pytest.mark.parametrize("name", REAL)
def test_images_too_small_for_crops_are_refused(name: str) -> None:
    check_augmentation("none", (1, 2, 2))
    check_augmentation(name, (1, 8, 8))
    with pytest.raises(
        ValueError,
        match=rf"training\.augmentation must be none for images of 32 x 7, got {name}:",
    ):
        check_augmentation(name, (3, 7, 32))


def test_an_unknown_augmentation_suggests_the_closest_name() -> None:
    with pytest.raises(
        ValueError, match=r"training\.augmentation 'crop_flp' is unknown; did you mean crop_flip or"
    ):
        TrainingSettings(augmentation="crop_flp")
