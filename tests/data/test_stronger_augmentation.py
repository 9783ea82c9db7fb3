"""RandAugment, random erasing, MixUp and CutMix are torchvision's, stay in [0, 1], and depend on
seed, epoch and image ids alone.
"""

from typing import Any

import pytest
import torch
from test_augmentation import COUNT, depends_on_seed_epoch_and_id_alone, pictures, streams
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp, RandAugment, RandomErasing
from trainings import assert_same_bits, kept_states, small_model, train

import sat_ray.data.augmentation.randaugment as room
from sat_ray.data.augmentation.erasing import erase, erased
from sat_ray.data.augmentation.mixing import boxes, mix, partners, weights
from sat_ray.data.augmentation.randaugment import OPERATIONS, SIGNED, operations_of, randaugment
from sat_ray.data.choices import STRONGEST, check_augmentation
from sat_ray.data.pixels import to_pixels
from sat_ray.data.split import Split
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.randomness import Randomness

LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 17, STRONGEST])
def test_every_operation_is_torchvisions(channels: int, magnitude: int) -> None:
    images = pictures(channels)[:4]
    theirs = RandAugment()
    space = theirs._AUGMENTATION_SPACE
    assert set(space) == set(OPERATIONS)
    for name, (magnitudes, signed) in space.items():
        levels = magnitudes(STRONGEST + 1, *images.shape[-2:])
        level = 0.0 if levels is None else float(levels[magnitude])
        assert signed == (name in SIGNED)
        for sign in (1.0, -1.0) if signed else (1.0,):
            wanted = theirs._apply_image_or_video_transform(
                images, name, sign * level, interpolation=theirs.interpolation, fill=theirs._fill
            )
            assert torch.equal(OPERATIONS[name](images, magnitude, sign), wanted), name


def test_each_image_gets_its_own_operations_in_order() -> None:
    images = pictures()
    changed = randaugment(images, streams(), count=2, magnitude=9, epoch=1)
    for row, drawn in enumerate(operations_of(streams(), 2, epoch=1)):
        alone = images[row : row + 1]
        for name, sign in drawn:
            alone = OPERATIONS[name](alone, 9, sign)
        assert torch.equal(changed[row], alone[0]), drawn


def test_operations_are_drawn_evenly() -> None:
    drawn = operations_of(streams(range(14_000)), 2, epoch=0)
    for place in range(2):
        names = [row[place][0] for row in drawn]
        counts = torch.tensor([names.count(name) for name in OPERATIONS]).double()
        statistic = ((counts - 1000) ** 2 / 1000).sum()
        assert statistic < 42  # chi-square with 13 degrees of freedom, all but 7e-5 of it
    backwards = [sign < 0 for row in drawn for name, sign in row if name in SIGNED]
    assert abs(sum(backwards) / len(backwards) - 0.5) < 0.02


def test_an_operation_that_would_leave_the_range_of_pixels_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brighter = dict.fromkeys(OPERATIONS, lambda images, magnitude, sign: images * 1.5)
    monkeypatch.setattr(room, "OPERATIONS", brighter)
    with pytest.raises(ValueError, match=r"so that pixels stay in \[0, 1\], got torch.float32"):
        randaugment(pictures(), streams(), count=1, magnitude=9, epoch=0)


def all_changes(images: Tensor, labels: Tensor, rng: Randomness, epoch: int) -> Any:
    """Return what every kind of change makes of images, with the mixed labels."""
    images = randaugment(images, rng, count=2, magnitude=STRONGEST, epoch=epoch)
    images = erase(images, rng, probability=0.5, epoch=epoch)
    return mix(images, labels, rng, mixup=0.3, cutmix=1.0, num_classes=10, epoch=epoch)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (20, 24), (33, 17)])
def test_pixels_stay_in_range_and_images_keep_their_shape(
    channels: int, size: tuple[int, int]
) -> None:
    """Black, white and noisy images, 20 epochs of all changes at their strongest."""
    images = pictures(channels, *size)
    images[::3] = 0
    images[1::3] = 255
    labels = torch.arange(COUNT) % 10
    for epoch in range(20):
        changed, soft = all_changes(images, labels, streams(), epoch)
        assert changed.dtype == torch.uint8 and changed.shape == images.shape
        x = to_pixels(changed)
        assert x.min() >= 0 and x.max() <= 1
        assert soft.shape == (COUNT, 10) and soft.min() >= 0
        torch.testing.assert_close(soft.sum(dim=1), torch.ones(COUNT))


@pytest.mark.parametrize("change", ["randaugment", "erase"])
def test_what_happens_to_an_image_depends_on_seed_epoch_and_id_and_not_on_its_batch(
    change: str,
) -> None:
    def changed(images: Tensor, rng: Randomness, epoch: int) -> Tensor:
        if change == "erase":
            return erase(images, rng, probability=1.0, epoch=epoch)
        return randaugment(images, rng, count=2, magnitude=20, epoch=epoch)

    assert depends_on_seed_epoch_and_id_alone(changed, share=0.8)


def test_what_is_mixed_depends_on_the_images_of_the_group_and_not_on_their_order() -> None:
    images, labels = pictures(), torch.arange(COUNT) % 10
    choices: dict[str, Any] = {"mixup": 0.5, "cutmix": 1.0, "num_classes": 10, "epoch": 2}
    whole, soft = mix(images, labels, streams(), **choices)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    again, too = mix(images[order], labels[order], streams(order.tolist()), **choices)
    assert torch.equal(again, whole[order]) and torch.equal(too, soft[order])


def test_every_image_is_mixed_with_another_and_each_is_used_once() -> None:
    for epoch in range(5):
        found = partners(streams(), epoch=epoch)
        assert sorted(found.tolist()) == list(range(COUNT))
        assert (found != torch.arange(COUNT)).all()


def one_pair(images: Tensor, labels: Tensor, row: int, other: int) -> tuple[Tensor, Tensor]:
    """Return a batch of two in which torchvision mixes the second with the first."""
    rows = torch.tensor([other, row])
    return images[rows], labels[rows]


def theirs(transform: Any, pair: tuple[Tensor, Tensor], **drawn: Any) -> tuple[Tensor, Tensor]:
    """Return what torchvision makes of a pair's second image and label."""
    x, y = pair
    params = {"labels": y, "batch_size": 2, **drawn}
    return transform.transform(x.float(), params)[1], transform.transform(y, params)[1]


def test_mixup_is_torchvisions() -> None:
    images, labels = pictures(), torch.arange(COUNT) % 10
    rng = streams()
    mixed, soft = mix(images, labels, rng, mixup=0.5, cutmix=0.0, num_classes=10, epoch=1)
    share = weights(rng, 0.5, purpose="augment/mixup", epoch=1)
    for row, other in enumerate(partners(rng, epoch=1).tolist()):
        pair = one_pair(images, labels, row, other)
        x, y = theirs(MixUp(num_classes=10), pair, lam=float(share[row]))
        assert (mixed[row].float() - x).abs().max() <= 0.501  # rounded to the nearest level
        torch.testing.assert_close(soft[row], y)


def test_cutmix_is_torchvisions() -> None:
    images, labels = pictures(), torch.arange(COUNT) % 10
    rng = streams()
    mixed, soft = mix(images, labels, rng, mixup=0.0, cutmix=1.0, num_classes=10, epoch=1)
    share = weights(rng, 1.0, purpose="augment/cutmix", epoch=1)
    masks = boxes(rng, share, *images.shape[-2:], epoch=1)
    for row, other in enumerate(partners(rng, epoch=1).tolist()):
        if not masks[row].any():
            assert torch.equal(mixed[row], images[row])
            continue
        down, along = (masks[row].any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        box = (int(along[0]), int(down[0]), int(along[-1]) + 1, int(down[-1]) + 1)
        left = 1 - (box[2] - box[0]) * (box[3] - box[1]) / images[row][0].numel()
        pair = one_pair(images, labels, row, other)
        x, y = theirs(CutMix(num_classes=10), pair, box=box, lam_adjusted=left)
        assert torch.equal(mixed[row].float(), x)
        torch.testing.assert_close(soft[row], y)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_weights_are_of_a_beta_distribution(alpha: float) -> None:
    from scipy.stats import beta

    found = weights(streams(range(20_000)), alpha, purpose="test", epoch=0).double()
    for level in LEVELS.tolist():
        below = (found <= beta(alpha, alpha).ppf(level)).double().mean()
        assert abs(below - level) < 0.015


def test_boxes_are_distributed_as_torchvisions() -> None:
    count = 4000
    rng = streams(range(count))
    share = weights(rng, 1.0, purpose="augment/cutmix", epoch=0)
    ours = boxes(rng, share, 20, 30, epoch=0).flatten(1).double().mean(dim=1)
    torch.manual_seed(0)
    transform = CutMix(num_classes=10)
    image = torch.zeros(2, 3, 20, 30)
    left = [transform.make_params([image])["lam_adjusted"] for _ in range(count)]
    drawn = 1 - torch.tensor(left).double()
    assert (ours.quantile(LEVELS) - drawn.quantile(LEVELS)).abs().max() < 0.04


def test_erased_rectangles_are_distributed_as_torchvisions() -> None:
    count = 4000
    masks = erased(streams(range(count)), 20, 30, probability=1.0, epoch=0)
    tall = masks.any(dim=2).sum(dim=1)
    wide = masks.any(dim=1).sum(dim=1)
    assert torch.equal(tall * wide, masks.flatten(1).sum(dim=1))  # rectangles
    assert (tall > 0).all()
    torch.manual_seed(0)
    transform, picture = RandomErasing(p=1.0), torch.zeros(3, 20, 30)
    drawn = [transform.make_params([picture]) for _ in range(count)]
    for ours, key in ((tall, "h"), (wide, "w")):
        sides = torch.tensor([one[key] for one in drawn]).double()
        assert (ours.double().quantile(LEVELS) - sides.quantile(LEVELS)).abs().max() <= 1
    assert (
        abs((masks.double().mean() * 600) - sum(one["h"] * one["w"] for one in drawn) / count) < 5
    )


def test_a_share_of_the_images_is_erased_with_random_pixels() -> None:
    images = torch.full((2000, 1, 12, 12), 7, dtype=torch.uint8)
    rng = streams(range(2000))
    changed = erase(images, rng, probability=0.25, epoch=0)
    touched = (changed != images).flatten(1).any(dim=1)
    assert abs(touched.float().mean() - 0.25) < 0.04
    mask = erased(rng, 12, 12, probability=0.25, epoch=0)
    assert torch.equal(changed[~mask[:, None]], images[~mask[:, None]])
    pixels = changed[mask[:, None]].double()
    assert abs(pixels.mean() - 127.5) < 3 and abs(pixels.std() - 73.9) < 3


EVERYTHING: dict[str, Any] = {
    "randaugment": 2,
    "random_erasing": 0.3,
    "mixup": 0.4,
    "cutmix": 1.0,
    "attack_steps": 2,
}


def test_training_with_all_of_them_learns_and_resumes_bit_for_bit(digits: Split) -> None:
    seen, every = kept_states()
    whole = train(small_model(), digits, **EVERYTHING, **every)[-1].state
    assert whole.history[1]["train/loss"] < whole.history[0]["train/loss"]
    resumed = train(small_model(), digits, **EVERYTHING, state=seen[5])
    assert_same_bits(resumed[-1].state, whole)
    plain = train(small_model(), digits, attack_steps=2)[-1].state
    assert not torch.equal(plain.weights["body.conv1.weight"], whole.weights["body.conv1.weight"])


@pytest.mark.parametrize("objective", ["trades", "mart"])
def test_objectives_take_the_mixed_labels(digits: Split, objective: str) -> None:
    report = train(small_model(), digits, epochs=1, mixup=1.0, objective=objective)[-1]
    assert 0 < report.metrics["train/loss"] < 10


def test_images_with_other_channels_are_refused() -> None:
    check_augmentation("none", (2, 8, 8))
    check_augmentation("none", (1, 8, 8), randaugment=2)
    with pytest.raises(ValueError, match=r"training\.randaugment must be 0 .* 4 channels, got 2"):
        check_augmentation("none", (4, 8, 8), randaugment=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"randaugment": 11}, r"training\.randaugment must be a whole number from 0 to 10, got 11"),
        ({"randaugment_magnitude": 31}, r"training\.randaugment_magnitude must be .* to 30, got"),
        ({"random_erasing": 1.5}, r"training\.random_erasing must be a number from 0 to 1, got"),
        ({"mixup": -0.1}, r"training\.mixup must be a number from 0 to 1, got -0\.1"),
        ({"cutmix": 2.0}, r"training\.cutmix must be a number from 0 to 1, got 2"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)
