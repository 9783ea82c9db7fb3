"""Images and lists that a sweep needs are looked for before anything is started."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sat_ray.integrations.command_line.checks.data_files import check_data
from sat_ray.integrations.command_line.dry_run import describe
from sat_ray.integrations.command_line.parsing import Command

Read = Callable[..., Command]
EXTRA = ("digits", "--data.extra", "npz", "--data.extra-share", "0.5", "--data.extra-path")
PHOTOS = ("digits", "--data.dataset", "image_folder", "--data.image-size", "8", "--data.path")


def save(path: str, shape: tuple[int, ...], *, classes: int = 10, **more: np.ndarray) -> str:
    images = np.full(shape, 7, dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(shape[0]) % classes, **more)
    return path


@pytest.mark.parametrize(
    ("shape", "classes", "said"),
    [
        ((20, 8, 8, 3), 10, "data.extra npz must have images of shape 1 x 8 x 8 .* got 3 x 8 x 8"),
        ((20, 1, 9, 8), 10, "data.extra npz must have images of shape 1 x 8 x 8 .* got 1 x 9 x 8"),
        ((20, 1, 8, 8), 3, "data.extra npz must have the 10 classes of digits, got 3"),
    ],
)
def test_a_dry_run_refuses_extra_images_of_another_shape_or_other_classes(
    command: Read, shape: tuple[int, ...], classes: int, said: str
) -> None:
    given = command(*EXTRA, save("more.npz", shape, classes=classes), "--dry-run")
    for check in (describe, lambda given: check_data(given.config, given.root)):
        with pytest.raises(ValueError, match=said):
            check(given)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(20) % 10 - 1, r"labels of more\.npz must lie in 0 to \d+, got -1 to 8"),
        (np.arange(19) % 10, r"labels of more\.npz must be \(20,\) whole numbers, .* got \(19,\)"),
        (np.eye(20), r"labels of more\.npz must be \(20,\) whole numbers, .* got \(20, 20\)"),
    ],
    ids=["images without a label", "one too few", "one-hot"],
)
def test_a_dry_run_refuses_labels_that_are_none(
    command: Read, labels: np.ndarray, said: str
) -> None:
    np.savez("more.npz", images=np.full((20, 8, 8, 1), 7, dtype=np.uint8), labels=labels)
    with pytest.raises(ValueError, match=said):
        describe(command(*EXTRA, "more.npz", "--dry-run"))


def test_a_dry_run_names_what_is_not_there_and_what_is_checked_later(command: Read) -> None:
    fitting = command(*EXTRA, save("more.npz", (20, 1, 8, 8)), "--dry-run")
    assert "checked when images are prepared" in describe(fitting)
    assert "not on this machine" not in describe(fitting)
    assert "checked when" not in describe(command("digits", "--dry-run"))
    missing = command(*PHOTOS, "photos", "--data.test-list", "list.txt", "--dry-run")
    assert "not on this machine: data.path photos, data.test_list list.txt" in describe(missing)
    unnamed = command(*PHOTOS[:-1], "--dry-run")
    assert "not given: data.path" in describe(unnamed)


@pytest.mark.parametrize("list_holds", [None, "", "\n\n"])
def test_a_sweep_on_this_machine_looks_for_its_files_before_it_starts(
    command: Read, monkeypatch: pytest.MonkeyPatch, list_holds: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    away = command(*EXTRA, "nowhere.npz")
    with pytest.raises(ValueError, match=r"^data\.extra_path nowhere\.npz: it is not there; for"):
        check_data(away.config, away.root)
    Path("photos").mkdir()
    if list_holds is not None:
        Path("list.txt").write_text(list_holds)
    listed = command(*PHOTOS, "photos", "--data.test-list", "list.txt")
    with pytest.raises(ValueError, match=r"^data\.test_list .*list\.txt"):
        check_data(listed.config, listed.root)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # whose nodes may have the files
    check_data(listed.config, listed.root)
