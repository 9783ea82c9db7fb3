"""Progressive resizing: the schedule against its closed form, the pixels against the triangle
filter, and training in between.
"""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import changed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trainings import BALL, assert_same_bits, enlarged, kept_states, small_model, train

from sat_ray.attacks import PGD
from sat_ray.data.pixels import to_pixels
from sat_ray.data.sources.registry import dataset_source
from sat_ray.data.split import Split
from sat_ray.integrations.command_line.checks.preflight import check_user_defined_parts
from sat_ray.models import ModelSpec, model_from_spec
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, ModelSettings
from sat_ray.sweep.cost.estimate import costs, forward_operations, passes_of, share_of_whole_images
from sat_ray.training.loop import TrainingSettings
from sat_ray.training.progressive_resizing import check_resizing, image_shape, image_side, resize

RAMP: dict[str, Any] = {"epochs": 4, "resize_start": 8, "resize_step": 4, "resize_ramp": 0.75}
"""Of images of 16 pixels: 8, 8, 12 and 16."""


def test_a_quarter_of_the_ramp_after_the_other_has_its_size_and_the_last_epochs_are_whole() -> None:
    settings = TrainingSettings(epochs=100, resize_start=96, resize_ramp=0.8)
    sides = [image_side(settings, epoch, full=224) for epoch in range(100)]
    assert sides == [96] * 20 + [128] * 20 + [160] * 20 + [192] * 20 + [224] * 20
    assert [
        image_side(dataclasses.replace(settings, resize_start=0), epoch, full=224)
        for epoch in range(100)
    ] == [224] * 100


@given(
    epochs=st.integers(1, 60),
    start=st.integers(8, 200),
    more=st.integers(1, 200),
    step=st.integers(1, 64),
    percent=st.integers(0, 100),
)
def test_the_side_is_the_line_rounded_down_to_whole_steps(
    epochs: int, start: int, more: int, step: int, percent: int
) -> None:
    settings = TrainingSettings(
        epochs=epochs, resize_start=start, resize_step=step, resize_ramp=percent / 100
    )
    for epoch in range(epochs):
        share = (
            min(Fraction(1), Fraction(epoch) / (Fraction(percent, 100) * epochs))
            if percent
            else Fraction(1)
        )
        expected = start + more if share == 1 else start + step * (share * more // step)
        assert image_side(settings, epoch, full=start + more) == expected


def triangle(size: int, smaller: int) -> Tensor:
    """Return the weights, (smaller, size) float64,
    of a triangle as wide as two new pixels around the middle of each.
    """
    scale = size / smaller
    distance = (
        torch.arange(size, dtype=torch.float64)
        + 0.5
        - scale * (torch.arange(smaller, dtype=torch.float64) + 0.5)[:, None]
    ).abs()
    weights = (1 - distance / scale).clamp_min(0)
    return weights / weights.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("shape", "side", "smaller"),
    [((3, 16, 16), 12, (12, 12)), ((1, 9, 14), 8, (8, 12)), ((3, 40, 31), 8, (10, 8))],
)
def test_images_shrink_by_the_triangle_filter_in_proportion(
    shape: tuple[int, int, int], side: int, smaller: tuple[int, int]
) -> None:
    x = to_pixels(
        torch.randint(
            0, 256, (5, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    )
    found = resize(x, side)
    rows, columns = triangle(shape[1], smaller[0]), triangle(shape[2], smaller[1])
    torch.testing.assert_close(found.double(), rows @ x.double() @ columns.T, rtol=0, atol=1e-6)
    assert resize(x, min(shape[1:])) is x
    assert torch.equal(found[2:3], resize(x[2:3], side))  # whatever its neighbours are
    white = resize(torch.ones_like(x), side)
    assert white.max() <= 1 and white.min() > 1 - 1e-6


def test_what_is_attacked_and_trained_on_has_the_size_of_its_epoch_and_what_is_validated_is_whole(
    digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, run, attacked, seen = enlarged(digits), PGD.run, [], []

    def recorded(self: PGD, model: Any, x: Tensor, y: Tensor, rng: Any, *, step: int = 0) -> Tensor:
        attacked.append((step, x.shape[-1]))
        assert torch.equal(
            x, resize(to_pixels(images.images[rng.image_ids]), image_side(settings, step, full=16))
        )
        x_adv = run(self, model, x, y, rng, step=step)
        assert x_adv.shape == x.shape and bool(BALL.contains(x_adv, x).all())
        return x_adv

    settings = TrainingSettings(**RAMP)
    model = small_model()
    model.register_forward_pre_hook(
        lambda module, given: seen.append((module.training, given[0].shape[-1]))
    )
    monkeypatch.setattr(PGD, "run", recorded)
    train(model, images, images=32, validate_every=1, **RAMP)
    assert attacked == [
        (epoch, side) for epoch, side in enumerate((8, 8, 12, 16)) for _ in range(2)
    ]  # two groups
    trained_on = [side for training, side in seen if training]
    assert trained_on == [side for side in (8, 8, 12, 16) for _ in range(2)]
    inference = [
        side for training, side in seen if not training
    ]  # the attack once a group, and validations
    assert (
        all(inference.count(side) == count for side, count in ((8, 4), (12, 2)))
        and inference.count(16) > 2
    )


def test_a_run_resumed_on_the_way_up_is_the_undisturbed_run_bit_for_bit(digits: Split) -> None:
    seen, every = kept_states()
    images = enlarged(digits)
    undisturbed = train(small_model(), images, images=64, **RAMP, **every)[-1].state
    assert [(state.epoch, state.step) for state in seen] == [
        (epoch, step) for epoch in range(4) for step in (1, 2)
    ]
    for at in (2, 3, 4):  # among images of 8 pixels, before those of 12, among those of 12
        assert_same_bits(
            train(small_model(), images, images=64, **RAMP, state=seen[at])[-1].state, undisturbed
        )


def test_a_first_size_that_is_not_smaller_is_refused_wherever_the_images_are_first_known(
    digits: Split,
) -> None:
    with pytest.raises(
        ValueError,
        match=r"training\.resize_start must be 0, or 8 to 199 for images of 300 x 200, got 224$",
    ):
        check_resizing(TrainingSettings(resize_start=224), (3, 200, 300))
    with pytest.raises(
        ValueError,
        match=r"training\.resize_start must be 0, or 8 to 31 for images of 32 x 32, got 32$",
    ):
        changed("cifar10_resnet18", training={"resize_start": 32})
    with pytest.raises(
        ValueError, match=r"training\.resize_start must be 0 for images of 8 x 8, got 8$"
    ):
        train(small_model(), digits, resize_start=8)


def test_a_network_of_ones_own_that_takes_one_size_alone_is_refused_on_arrival(
    tmp_path: Path,
) -> None:
    shrinks = {"resize_start": 8, "resize_step": 4}
    config = changed("digits_smoke", training={"epochs": 4})
    flowers = DataSettings(dataset="mypkg.data:flowers")
    for name, training in (("own_parts:of_one_size", {}), ("mypkg.nets:net", shrinks)):
        fine = dataclasses.replace(config, data=flowers, model=ModelSettings(name=name))
        check_user_defined_parts(
            dataclasses.replace(fine, training=dataclasses.replace(config.training, **training)),
            Storage.at(tmp_path),
        )
    training = dataclasses.replace(config.training, **shrinks)
    bad = dataclasses.replace(
        config, data=flowers, model=ModelSettings(name="own_parts:of_one_size"), training=training
    )
    with pytest.raises(
        ValueError,
        match=(
            r"own_parts:of_one_size, given images of 8 x 8 for training\.resize_start, raised "
            r"RuntimeError"
        ),
    ) as e:
        check_user_defined_parts(bad, Storage.at(tmp_path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "preact_resnet18", "small_resnet"])
def test_every_family_of_networks_trains_on_the_smallest_images(name: str) -> None:
    with torch.device("meta"):
        model = model_from_spec(ModelSpec(name=name), seed=0)
        assert model(torch.empty(2, 3, 8, 8)).shape == (2, 10)


def test_the_operations_of_a_dry_run_are_those_of_the_sizes() -> None:
    small = {"model": {"name": "resnet18", "zero_gamma": False}, "search": {"rungs": (1,)}}
    config = changed("imagenet_resnet50", training={"epochs": 10, "resize_start": 160}, **small)
    whole = (3, 224, 224)
    shapes = [image_shape(config.training, epoch, whole) for epoch in range(10)]
    assert [shape[1] for shape in shapes] == [160] * 4 + [192] * 4 + [224] * 2
    share = share_of_whole_images(config, config.training, whole, classes=1000)
    assert share == pytest.approx(
        (4 * 160**2 + 4 * 192**2 + 2 * 224**2) / (10 * 224**2), rel=0.02
    )  # convolutions take most of it
    count, source = forward_operations(config, whole, classes=1000)[0], dataset_source("imagenet")
    shown = costs(config, source, passes_of(config, source))
    assert shown["sizes of training images"] == (
        "160 x 160 from epoch 1, 192 x 192 from epoch 5, 224 x 224 from epoch 9: "
        f"{100 * share:.0f} % of the operations that whole images would take"
    )
    models, images = len(config.search.points()), 1_271_167
    assert float(shown["estimated operations, training"].split()[0]) == pytest.approx(
        images * 10 * models * 3 * 5 * count * share, rel=0.05
    )
    # a trial of one epoch sees the first size alone
    assert float(shown["estimated operations, search"].split()[0]) == pytest.approx(
        images * models * 5 * forward_operations(config, shapes[0], classes=1000)[0], rel=0.05
    )
