"""A split in memory: uint8 images with labels and stable ids."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


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

    def with_ids(self, image_ids: Iterable[int]) -> "Split":
        """Keep the images with these ids."""
        wanted = torch.tensor(sorted(image_ids), dtype=torch.int64)
        return self.take(torch.isin(self.image_ids, wanted))

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
