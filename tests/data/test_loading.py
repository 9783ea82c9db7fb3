"""Images from shards and from memory are the same images in the same order, new in every epoch,
each shard read once and kept briefly.
"""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import image_file
from sweeps import digits_shards
from torch import Tensor
from trainings import BALL, SMALL, arguments_of_fit, assert_same_bits, kept_states, small_model

from sat_ray.data import loading
from sat_ray.data.epoch_order import epoch_order
from sat_ray.data.images import Storing
from sat_ray.data.loading import Resident, Streamed, streams
from sat_ray.data.shards.dataset import write_dataset
from sat_ray.data.shards.manifest import CorruptShardError
from sat_ray.data.shards.reading import read_split
from sat_ray.data.sources.registry import DATASETS
from sat_ray.data.split import Split
from sat_ray.storage.store import Storage
from sat_ray.sweep.config import DataSettings, ModelSettings, SweepConfig
from sat_ray.sweep.execute.training import train_and_commit
from sat_ray.sweep.plan.trainings import final_tasks
from sat_ray.sweep.records.store import Records
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import Dataset
from sat_ray.training.epoch_metrics import NonFiniteLossError
from sat_ray.training.loop import TrainingSettings, TrainingState, fit
from sat_ray.utils.randomness import permutation

ROWS = 20
SHARDS = (ROWS,) * 15 + (7,)  # 307 rows


def order(window: int = 60, epoch: int = 0, seed: int = 0, groups: int = 2) -> Tensor:
    return epoch_order(
        SHARDS, groups=groups, group_size=16 // groups, window=window, seed=seed, epoch=epoch
    )


@pytest.mark.parametrize("window", [1, 60, 306, 307])
def test_an_epoch_has_every_row_at_most_once_and_in_an_order_that_is_new_by_seed_and_epoch(
    window: int,
) -> None:
    plan = order(window)
    assert (
        plan.shape == (19, 2, 8)
        and len(set(plan.flatten().tolist())) == 304
        and set(plan.flatten().tolist()) <= set(range(307))
    )
    assert torch.equal(plan, order(window))
    for other in (order(window, epoch=1), order(window, seed=1)):
        assert (other == plan).double().mean() < 0.1
    left_out = [
        set(range(307)) - set(order(window, epoch=epoch).flatten().tolist()) for epoch in range(12)
    ]
    assert len(set.union(*left_out)) > 12  # other rows every time


def test_a_split_within_the_window_is_shuffled_as_a_whole() -> None:
    for epoch in range(3):
        assert torch.equal(order(307, epoch).flatten(), permutation(307, seed=0, epoch=epoch)[:304])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_in_a_longer_split_the_groups_read_different_shards_and_each_only_for_a_while(
    groups: int,
) -> None:
    window, seen = 60, []
    for stream in order(window, groups=groups).unbind(dim=1):
        shards = (stream.flatten() // ROWS).tolist()
        alive = [len(set(shards[: at + 1]) & set(shards[at:])) for at in range(len(shards))]
        assert max(alive) <= window / groups / ROWS + 2
        seen.append(set(shards))
    assert sum(map(len, seen)) <= len(SHARDS) + groups - 1  # one shard may lie across each cut
    places = np.argsort(order(window, groups=1).flatten().numpy() // ROWS, kind="stable")
    assert np.abs(places - np.arange(len(places))).max() > ROWS  # and shards are mixed


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Prepare 360 pictures of three classes in train shards of 20."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(360):
        path = root / "in" / f"class{number // 120}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_file(number, (10, 9), kind="PNG"))
    storing = Storing(image_size=8, encoding=request.param)
    write_dataset(
        DATASETS["image_folder"],
        Storage.at(root / "out"),
        path=str(root / "in"),
        rows_per_shard=ROWS,
        storing=storing,
    )
    return Storage.at(root / "out")


def plans(storage: Storage) -> list[Tensor]:
    shards = Streamed(storage, "train", threads=1).shards
    assert sum(shards) == 288 and len(shards) == 15
    return [
        epoch_order(shards, groups=4, group_size=8, window=window, seed=0, epoch=1)
        for window in (64, 288)
    ]


def same(one: Split, other: Split) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("images", "labels", "image_ids")
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_a_streamed_epoch_is_the_resident_one_whatever_its_order_and_from_any_position(
    dataset: Storage, threads: int
) -> None:
    streamed = Streamed(dataset, "train", threads=threads)
    resident = Resident(read_split(dataset, "train"), streamed.shards)
    for plan in plans(dataset):
        for part in (plan, plan[3:], plan[:, 2:], plan[8:, :1], plan[9:]):
            pairs = list(zip(streamed.batches(part), resident.batches(part), strict=True))
            assert len(pairs) == len(part) and all(len(ours) == part.shape[1] for ours, _ in pairs)
            assert all(
                same(one, other)
                for ours, theirs in pairs
                for one, other in zip(ours, theirs, strict=True)
            )
        assert torch.equal(streamed.ids(plan[2, 1]), resident.ids(plan[2, 1]))


def test_train_shards_of_encoded_images_are_samples_of_all_classes(dataset: Storage) -> None:
    labels = read_split(dataset, "train").labels
    assert all(set(part.tolist()) == {0, 1, 2} for part in labels.split(ROWS)[:-1])


def test_each_shard_is_read_and_checked_once_and_let_go_after_its_last_row(
    dataset: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, kept, (plan, _) = Counter[str](), list[int](), plans(dataset)
    read, take = loading.read_shard, loading._Shelf.take

    def counted(storage: Storage, shard: dict[str, Any], **settings: Any) -> Any:
        reads[shard["file"]] += 1
        return read(storage, shard, **settings)

    def watched(shelf: Any, group: int) -> Any:
        found = take(shelf, group)
        kept.append(len(shelf.tables))
        return found

    monkeypatch.setattr(loading, "read_shard", counted)
    monkeypatch.setattr(loading._Shelf, "take", watched)
    for _ in Streamed(dataset, "train", threads=2).batches(plan[:, :1]):
        pass
    assert set(reads.values()) == {1} and 4 <= len(reads) <= 6  # one stream of four
    assert max(kept) <= 64 / 4 / ROWS + 2 + 2 and kept[-1] == 0


def test_a_damaged_shard_is_named_when_it_is_read(dataset: Storage, tmp_path: Path) -> None:
    for name in (
        "manifest.json",
        *(shard["file"] for shard in dataset.read_json("manifest.json")["shards"]),
    ):
        (tmp_path / name).write_bytes(dataset.read(name))
    copy, (plan, _) = Storage.at(tmp_path), plans(dataset)
    data = bytearray((tmp_path / "train-00007.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "train-00007.parquet").write_bytes(data)
    with pytest.raises(
        CorruptShardError, match=r"train-00007\.parquet has sha256 .* damaged; restore the file"
    ):
        list(Streamed(copy, "train", threads=2).batches(plan))
    (tmp_path / "train-00007.parquet").unlink()
    with pytest.raises(
        CorruptShardError, match=r"train-00007\.parquet is missing; restore the file"
    ):
        list(Streamed(copy, "train", threads=2).batches(plan))


def test_an_epoch_that_is_left_leaves_no_threads_behind(dataset: Storage) -> None:
    before = set(threading.enumerate())
    batches = Streamed(dataset, "train", threads=3).batches(plans(dataset)[0])
    next(batches)
    started = set(threading.enumerate()) - before  # others of this process may end meanwhile
    assert started
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.is_alive() for thread in started)


def test_auto_streams_what_is_larger_than_the_stated_limit() -> None:
    small, large = (
        {"splits": {"train": count}, "shape": [3, 224, 224]} for count in (28_500, 28_600)
    )
    assert [streams(one, "auto") for one in (small, large)] == [False, True]
    assert [streams(one, "streaming") for one in (small, large)] == [True, True]
    assert [streams(one, "resident") for one in (small, large)] == [False, False]


@pytest.fixture(scope="module")
def digit_shards(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Prepare the digits in shards of 60: 718 train images, 12 shards."""
    return digits_shards(tmp_path_factory.mktemp("digits"), rows=60)


def trained(train: Any, digits: Split, **changes: Any) -> TrainingState:
    """Train a small model, validate it on 32 digits, and return its last state."""
    parts, options = (train, digits.take(slice(1000, 1032))), arguments_of_fit(SMALL, changes)
    return list(fit(small_model(), *parts, threat_model=BALL, **options))[-1].state


def test_training_from_shards_is_training_from_memory_bit_for_bit_and_goes_on_from_any_step(
    digits: Split, digit_shards: Dataset
) -> None:
    storage, (seen, every) = Storage.at(digit_shards.uri), kept_states(7)
    streamed = Streamed(storage, "train", threads=2)
    resident = Resident(read_split(storage, "train"), streamed.shards)
    changes: dict[str, Any] = {
        "shuffle_window": 120,
        "augmentation": "crop_flip",
        "randaugment": 1,
        "random_erasing": 0.2,
        "mixup": 0.2,
        "cutmix": 1.0,
        "global_batch_size": 64,
    }
    ours = trained(streamed, digits, **changes, **every)
    assert_same_bits(ours, trained(resident, digits, **changes))
    assert [(state.epoch, state.step) for state in seen] == [(0, 7), (1, 3), (1, 10)]
    assert_same_bits(ours, trained(streamed, digits, **changes, state=seen[1]))


def test_a_nan_loss_names_the_images_of_its_step_from_shards_too(
    digits: Split, digit_shards: Dataset
) -> None:
    streamed = Streamed(Storage.at(digit_shards.uri), "train", threads=1)
    with pytest.raises(NonFiniteLossError) as caught:
        trained(streamed, digits, learning_rate=1e30)
    rows = permutation(718, seed=0, epoch=0)[32:64]
    assert caught.value.image_ids == tuple(
        read_split(Storage.at(digit_shards.uri), "train").image_ids[rows].tolist()
    )


def test_a_task_has_the_same_key_and_weights_however_its_images_are_loaded(
    digit_shards: Dataset, tmp_path: Path
) -> None:
    training = TrainingSettings(epochs=1, warmup_epochs=0, validation_steps=4, validate_every=1)
    records = []
    for how in ("resident", "streaming"):
        data = DataSettings(loading=how, rows_per_shard=60)  # type: ignore[arg-type]
        config = SweepConfig(
            recipe="toy",
            threat_model=BALL,
            model=ModelSettings(width=8),
            training=training,
            data=data,
        )
        task = final_tasks(config, digit_shards, [SearchPoint(activation="silu")])[0]
        assert task.loading == how
        records.append(train_and_commit(task, Records(Storage.at(tmp_path / how))))
    assert records[0].key == records[1].key and records[0].content == records[1].content


def test_an_unknown_way_of_loading_suggests_the_closest_name() -> None:
    with pytest.raises(
        ValueError, match=r"data\.loading 'streamed' is unknown; did you mean streaming\?"
    ):
        DataSettings(loading="streamed")  # type: ignore[arg-type]
