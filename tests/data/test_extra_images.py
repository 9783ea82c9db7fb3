"""Extra images are a fixed share of every batch, whatever the number of workers, and training on
them goes on from any step.
"""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import changed
from sweeps import prepare
from trainings import BALL, SMALL, assert_same_bits, kept_states, small_model, train

from sat_ray.data.class_names import extra_labels
from sat_ray.data.extra import Extra, extra_order
from sat_ray.data.loading import Streamed
from sat_ray.data.shards.reading import read_split
from sat_ray.data.sources.base import LayoutError
from sat_ray.data.split import Split
from sat_ray.integrations.command_line.checks.data_files import check_data
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, SweepConfig
from sat_ray.sweep.cost.estimate import passes_of
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.datasets import prepared_dataset
from sat_ray.sweep.plan.trainings import final_tasks
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import TrainingTask
from sat_ray.training.batches import Batches
from sat_ray.training.parallel.process_group import ProcessGroup
from sat_ray.training.settings import Problem

SHARE = 0.3  # of groups of 16: five images
PROBLEM = Problem(
    settings=dataclasses.replace(SMALL, global_batch_size=64), threat_model=BALL, seed=1
)


@pytest.fixture
def own(digits: Split) -> Split:
    return digits.take(slice(0, 200))


@pytest.fixture
def more(digits: Split) -> Split:
    """Return 90 other digits: more than two and less than five of a global batch's 20."""
    return digits.take(slice(300, 390))


def batches(own: Split, more: Split, *, rank: int = 0, size: int = 1) -> Batches:
    return Batches(
        own,
        PROBLEM,
        process_group=ProcessGroup(rank, size),
        device=torch.device("cpu"),
        extra=Extra(more, SHARE),
    )


def ids_of(found: Batches, epoch: int, first: int = 0) -> list[list[list[int]]]:
    """Return the image ids of every group of every step."""
    return [
        [group.image_ids.tolist() for group in groups]
        for _, groups in found.of_epoch(epoch, first=first)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_group_has_exactly_the_share_for_any_number_of_workers(
    own: Split, more: Split, size: int
) -> None:
    alone = ids_of(batches(own, more), 1)
    shared = [ids_of(batches(own, more, rank=rank, size=size), 1) for rank in range(size)]
    together = [[group for part in step for group in part] for step in zip(*shared, strict=True)]
    assert together == alone
    assert len(alone) == 200 // (4 * 11)
    for group in (group for step in alone for group in step):
        assert [image < 0 for image in group] == [False] * 11 + [True] * 5


def test_a_batch_holds_the_pixels_and_labels_of_its_ids(own: Split, more: Split) -> None:
    for _, groups in batches(own, more).of_epoch(0, first=0):
        for group in groups:
            for pixels, label, image_id in zip(*dataclasses.astuple(group), strict=True):
                number = int(image_id)
                split, wanted = (own, number) if number >= 0 else (more, -1 - number)
                row = int((split.image_ids == wanted).nonzero())
                assert torch.equal(pixels, split.images[row]) and label == split.labels[row]


def test_extra_images_are_used_pass_after_pass_over_the_epochs(own: Split, more: Split) -> None:
    found = batches(own, more)
    used = [
        image
        for epoch in range(6)
        for step in ids_of(found, epoch)
        for group in step
        for image in group
        if image < 0
    ]
    per_pass = 90 // 20 * 20
    assert len(used) == 6 * 4 * 20
    for first in range(0, len(used), per_pass):
        part = Counter(used[first : first + per_pass])
        assert max(part.values()) == 1
    assert used[:per_pass] != used[per_pass : 2 * per_pass]
    assert ids_of(found, 2, first=3) == ids_of(found, 2)[3:]
    step = [image for group in ids_of(found, 2)[1] for image in group]
    assert sorted(found.image_ids(2, 1)) == sorted(step)


def test_a_long_pass_over_many_epochs_and_a_short_one_within_an_epoch() -> None:
    choices: dict[str, Any] = {"groups": 2, "group_size": 4, "window": 10, "seed": 0}
    rows = [extra_order((50, 50), steps=5, epoch=epoch, **choices) for epoch in range(3)]
    first_pass = torch.cat(rows)[:12]
    assert len(first_pass.flatten().unique()) == 12 * 8 and rows[0].shape == (5, 2, 4)
    short = extra_order((9,), steps=5, epoch=0, **choices)
    assert short.shape == (5, 2, 4) and len(short.flatten().unique()) == 9
    with pytest.raises(ValueError, match=r"data\.extra must have at least 8 training images.*7"):
        extra_order((7,), steps=5, epoch=0, **choices)


def test_training_with_extra_images_resumes_bit_for_bit_from_any_step(
    digits: Split, more: Split
) -> None:
    seen, every = kept_states()
    extra = {"extra": Extra(more, SHARE)}
    whole = train(small_model(), digits, **extra, **every, mixup=0.2)[-1].state
    assert len(seen) == 2 * (128 // 22)
    for at in (1, 6):
        resumed = train(small_model(), digits, **extra, mixup=0.2, state=seen[at])
        assert_same_bits(resumed[-1].state, whole)
    plain = train(small_model(), digits, mixup=0.2)[-1].state
    assert not torch.equal(plain.weights["body.conv1.weight"], whole.weights["body.conv1.weight"])


def npz(path: Path, split: Split, **changes: Any) -> Path:
    """Write images to an .npz file."""
    arrays = {"images": split.images.numpy(), "labels": split.labels.numpy()} | changes
    np.savez(path, **arrays)
    return path


@pytest.fixture
def command(digits: Split, tmp_path: Path) -> list[str]:
    """Return the options of a sweep on digits with 300 of them as extra images, prepared."""
    file = npz(tmp_path / "more.npz", digits.take(slice(0, 300)))
    words = ["digits_smoke", "--storage", str(tmp_path / "runs"), "--data.extra", "npz"]
    words += ["--data.extra-path", str(file), "--data.extra-share", "0.25"]
    prepare(*words)
    return words


def tasks(command: list[str], **sections: dict[str, Any]) -> TrainingTask:
    """Return the first training of a sweep that is prepared."""
    data = {"extra": "npz", "extra_path": command[-3], "extra_share": 0.25}
    config = changed("digits_smoke", data=data | sections.get("data", {}))
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, epochs=1, warmup_epochs=0)
    )
    dataset = prepared_dataset(config, Storage.at(command[2]))
    assert dataset is not None and dataset.extra is not None
    return final_tasks(config, dataset, [SearchPoint(activation="silu")])[0]


def test_a_sweep_prepares_trains_on_and_records_its_extra_images(
    command: list[str], tmp_path: Path
) -> None:
    found = {}
    for loading in ("resident", "streaming"):
        task = tasks(command, data={"loading": loading})
        assert task.inputs["extra"]["share"] == 0.25
        found[loading] = train_and_commit(task, Records(Storage.at(tmp_path / loading)))
    assert found["resident"].key == found["streaming"].key
    assert found["resident"].content == found["streaming"].content
    assert task.dataset.extra is not None
    other = dataclasses.replace(task.dataset.extra, hash="other images")
    replaced = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, extra=other))
    shared = dataclasses.replace(task, extra_share=0.5)
    without = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, extra=None))
    assert "extra" not in without.inputs
    assert len({one.key for one in (task, replaced, shared, without)}) == 4


def test_extra_images_are_read_from_their_shards_too(command: list[str], digits: Split) -> None:
    extra = tasks(command).dataset.extra
    assert extra is not None
    storage = Storage.at(extra.uri)
    states = []
    for images in (read_split(storage, "train"), Streamed(storage, "train", threads=1)):
        states.append(train(small_model(), digits, extra=Extra(images, 0.5))[-1].state)
    assert_same_bits(states[0], states[1])


def manifest(names: list[str], shape: tuple[int, int, int] = (1, 8, 8)) -> dict[str, Any]:
    return {"dataset": "mine", "class_names": names, "shape": list(shape)}


def test_labels_are_matched_by_the_names_of_the_classes() -> None:
    birds = manifest(["crow", "owl", "tit"])
    assert extra_labels(birds, manifest(["crow", "owl", "tit"])) == ()
    assert extra_labels(birds, manifest(["tit", "crow", "owl"])) == (2, 0, 1)
    assert extra_labels(birds, manifest(["0", "1", "2"])) == ()
    with pytest.raises(ValueError, match=r"data\.extra mine must have the 3 classes of mine, got"):
        extra_labels(birds, manifest(["0", "1"]))
    with pytest.raises(ValueError, match=r"the classes of mine \(crow, owl, tit\), got .*; rename"):
        extra_labels(birds, manifest(["crow", "owl", "robin"]))
    with pytest.raises(ValueError, match=r"data\.extra mine must have images of shape 1 x 8 x 8"):
        extra_labels(birds, manifest(["crow", "owl", "tit"], (3, 8, 8)))


def test_labels_in_another_order_are_trained_on_as_the_models_classes(
    own: Split, more: Split
) -> None:
    order = tuple((label + 1) % 10 for label in range(10))
    turned = Split(more.images, (more.labels - 1) % 10, more.image_ids)
    device = torch.device("cpu")
    plan = torch.arange(8).view(1, 2, 4)
    (wanted,) = Extra(more, SHARE).loader(device).batches(plan)
    (found,) = Extra(turned, SHARE, order).loader(device).batches(plan)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": "npz"}, r"data\.extra and data\.extra_share must be given together, got npz"),
        ({"extra_share": 0.5}, r"data\.extra and data\.extra_share .*, got no dataset and 0\.5"),
        ({"extra_path": "x"}, r"data\.extra and data\.extra_share must be given together"),
        ({"extra": "cifar10", "extra_share": 0.5}, r"data\.extra must have images of the shape"),
        ({"extra": "npx", "extra_share": 0.5}, r"data\.extra 'npx' is unknown; did you mean npz"),
        ({"extra": "a.npz", "extra_share": 0.5}, r"give --data.extra npz --data.extra-path a.npz"),
        (
            {"dataset": "a.npz"},
            r"^data.dataset must be .*; give --data.dataset npz --data.path a.npz",
        ),
        (
            {"extra": "npz", "extra_share": 0.5, "extra_path": "https://x.org/a.npz"},
            r"data.extra_path must be a local path or begin with s3://, got .*; download it",
        ),
        ({"extra": "npz", "extra_share": 1.5}, r"data\.extra_share must be a number at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**changes)


def test_messages_about_the_extra_images_name_their_settings(tmp_path: Path) -> None:
    words = ["digits_smoke", "--storage", str(tmp_path), "--data.extra", "npz"]
    words += ["--data.extra-share", "0.25"]
    config = changed("digits_smoke", data={"extra": "npz", "extra_share": 0.25})
    with pytest.raises(LayoutError, match=r"^data\.extra_path must not be empty; for npz give an"):
        check_data(config, Storage.at(tmp_path))
    with pytest.raises(LayoutError, match=r"^data\.extra_path .*no\.npz: it is not there; for npz"):
        prepare(*words, "--data.extra-path", str(tmp_path / "no.npz"))
    assert not list((tmp_path / "data").glob("digits*")), "said before the dataset is prepared"


def test_other_numbers_of_classes_are_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r"data\.extra must have the 10 classes of cifar10, got"):
        DataSettings(dataset="cifar10", extra="cifar100", extra_share=0.5)


def test_a_share_that_leaves_a_group_without_either_kind_is_refused() -> None:
    for share in (0.01, 0.99):
        with pytest.raises(ValueError, match=r"data\.extra_share must give at least one .* of 32"):
            changed("digits", data={"extra": "npz", "extra_path": "x", "extra_share": share})


def test_extra_images_of_another_shape_are_refused_in_memory_too(digits: Split) -> None:
    wide = Split(digits.images.repeat(1, 1, 1, 2), digits.labels, digits.image_ids)
    with pytest.raises(ValueError, match=r"extra\.images must have images of shape \(1, 8, 8\)"):
        train(small_model(), digits, extra=Extra(wide, 0.5))


def test_the_estimate_and_the_name_of_a_sweep_follow_the_extra_images() -> None:
    from sat_ray.data.sources.registry import dataset_source

    def config(**data: Any) -> SweepConfig:
        return changed("digits", data=data)

    plain = config()
    more = config(extra="npz", extra_path="x", extra_share=0.5)
    source = dataset_source("digits")
    ratio = passes_of(more, source)["training"] / passes_of(plain, source)["training"]
    assert ratio == pytest.approx(2, abs=0.01)
    assert plain.semantic()["data"].keys() == plain.data.identity().keys()
    assert more.semantic() != plain.semantic()
    assert more.data.identity() == plain.data.identity()


def test_too_few_extra_images_are_refused_before_training(command: list[str]) -> None:
    task = tasks(command)
    assert task.dataset.extra is not None
    few = task.dataset.extra.manifest | {"splits": {"train": 7, "val": 1, "test": 1}}
    extra = dataclasses.replace(task.dataset.extra, manifest=few)
    config = changed("digits_smoke", data={"extra": "npz", "extra_path": "x", "extra_share": 0.25})
    with pytest.raises(ValueError, match=r"data\.extra must have at least .* images, .*, got 7"):
        final_tasks(
            config,
            dataclasses.replace(task.dataset, extra=extra),
            [SearchPoint(activation="silu")],
        )
