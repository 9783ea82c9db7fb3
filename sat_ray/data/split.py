"""A split in memory, uint8 images with labels and stable ids, and which ids belong to which split."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Images in memory with their labels: `Split(images, labels, image_ids)`, one row per image.

    `len(split)` is the number of images, `split.take(rows)` keeps some of them.
    """

    images: Tensor
    """(N, C, H, W) uint8, 0 to 255."""
    labels: Tensor
    """(N,) int64, classes from 0 to K - 1."""
    image_ids: Tensor
    """(N,) int64, a different number for each image, for example its index in the data set; random
    draws depend on it."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor | slice) -> "Split":
        """Keep these rows."""
        return Split(self.images[rows], self.labels[rows], self.image_ids[rows])

    def to(self, device: torch.device) -> "Split":
        """Move to a device."""
        return replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            image_ids=self.image_ids.to(device),
        )

    def pinned(self) -> "Split":
        """Copy to page-locked memory of the host."""
        return Split(
            self.images.pin_memory(), self.labels.pin_memory(), self.image_ids.pin_memory()
        )


Arrays = tuple[Tensor | np.ndarray, Tensor | np.ndarray | Sequence[int]]
"""(images, labels): (N, C, H, W) uint8 and (N,) whole numbers."""


def given_split(given: Split | Arrays, *, field: str) -> Split:
    """Return a checked split on the CPU; of (images, labels) the image ids are 0 to N - 1.

    field: the argument's name, for messages. Raises ValueError on any other kind of value.
    """
    if isinstance(given, Split):
        return checked_split(given.images, given.labels, given.image_ids, field=field)
    if isinstance(given, tuple | list) and len(given) == 2:
        return checked_split(given[0], given[1], field=field)
    found = type(given).__name__
    if isinstance(given, tuple | list):
        found += f" of {len(given)}"
    raise ValueError(f"{field} must be a Split or a tuple (images, labels), got {found}")


def labelled_split(given: Split | Arrays, *, field: str, num_classes: int) -> Split:
    """Return a checked split on the CPU with at least one image and labels of a model's classes.

    field: the argument's name, for messages. Raises ValueError on anything else.
    """
    split = given_split(given, field=field)
    if not len(split):
        raise ValueError(f"{field} must have at least one image, got none")
    low = int(split.labels.min())
    high = int(split.labels.max())
    if not 0 <= low <= high < num_classes:
        raise ValueError(
            f"{field}.labels must lie in 0 to {num_classes - 1}, as the model has {num_classes} "
            f"classes, got {low} to {high}"
        )
    return split


def checked_split(images: Any, labels: Any, image_ids: Any = None, *, field: str = "") -> Split:
    """Return a split of arrays on the CPU. image_ids: 0 to N - 1 where None.

    field: put before the names of the arrays in messages. Raises ValueError on wrong kinds of
    values, shapes, numbers and lengths.
    """
    start = f"{field}." if field else ""
    pixels = _as_tensor(images, name=f"{start}images")
    if pixels.dtype != torch.uint8 or pixels.dim() != 4:
        hint = ""
        if pixels.is_floating_point():
            hint = "; multiply pixels in [0, 1] by 255, round, and convert to uint8"
        found = _kind(pixels)
        raise ValueError(f"{start}images must be uint8 of shape (N, C, H, W), got {found}{hint}")
    y = _whole_numbers(labels, name=f"{start}labels", count=len(pixels))
    numbers = torch.arange(len(pixels)) if image_ids is None else image_ids
    ids = _whole_numbers(numbers, name=f"{start}image_ids", count=len(pixels))
    if len(torch.unique(ids)) != len(ids):
        raise ValueError(f"{start}image_ids must differ from each other, got duplicates")
    return Split(pixels.contiguous(), y, ids)  # the layout of images is no part of an evaluation


def _as_tensor(values: Any, *, name: str) -> Tensor:
    try:
        return torch.as_tensor(values).cpu()
    except (TypeError, ValueError, RuntimeError):
        found = type(values).__name__
        raise ValueError(f"{name} must be an array of numbers, got {found}") from None


def _whole_numbers(values: Any, *, name: str, count: int) -> Tensor:
    """Return (count,) int64 on the CPU."""
    numbers = _as_tensor(values, name=name)
    fraction = numbers.is_floating_point() or numbers.is_complex()
    if numbers.shape != (count,) or (count and fraction):
        found = _kind(numbers)
        raise ValueError(f"{name} must be {count} whole numbers, one per image, got {found}")
    return numbers.to(torch.int64)


def _kind(values: Tensor) -> str:
    return f"{values.dtype} of shape {tuple(values.shape)}"


def by_hash(name: str, ids: Iterable[int]) -> np.ndarray:
    """Order ids by sha256("name:id"): fixed for ever, independent of labels and machine."""
    return np.array(
        sorted(ids, key=lambda one: hashlib.sha256(f"{name}:{one}".encode()).digest()),
        dtype=np.int64,
    )


def split_by_hash(name: str, count: int, *, test: int, val: int) -> dict[str, np.ndarray]:
    """Assign image ids to splits by their hash: the first `test` are the test split, the next `val` the val split."""
    if not 0 < test + val < count:
        raise ValueError(
            f"test {test} + val {val} images; allowed: fewer than the {count} of {name}"
        )
    ids = by_hash(name, range(count))
    return {
        "test": np.sort(ids[:test]),
        "val": np.sort(ids[test : test + val]),
        "train": np.sort(ids[test + val :]),
    }


def split_officially(
    name: str, count: int, held_out: Mapping[str, np.ndarray], *, val: int
) -> dict[str, np.ndarray]:
    """Keep the splits that a dataset comes with; where it has no val split, take `val` of its train images by their hash.

    held_out: image ids of "test" and, if there is one, "val". Raises ValueError where nothing would be left to train on.
    """
    taken = np.concatenate(list(held_out.values()))
    rest = np.setdiff1d(np.arange(count), taken)
    ids = by_hash(name, rest.tolist())
    chosen = held_out["val"] if "val" in held_out else ids[:val]
    train = np.setdiff1d(rest, chosen)
    if not (len(train) and len(chosen) and len(held_out["test"])):
        raise ValueError(
            f"{name} has {count} images, {len(held_out['test'])} of them for testing; allowed: some to train on, some to hold out"
        )
    return {"test": np.sort(held_out["test"]), "val": np.sort(chosen), "train": train}
