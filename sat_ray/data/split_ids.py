"""Which image ids belong to which split."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

SPLITS = ("train", "val", "test")


def by_hash(name: str, ids: Iterable[int]) -> np.ndarray:
    """Order ids by sha256("name:id"): independent of labels and machine."""
    return np.array(
        sorted(ids, key=lambda one: hashlib.sha256(f"{name}:{one}".encode()).digest()),
        dtype=np.int64,
    )


def split_by_hash(name: str, count: int, *, test: int, val: int) -> dict[str, np.ndarray]:
    """Assign image ids to splits by their hash.

    The first `test` are the test split, the next `val` the val split.
    """
    if not 0 < test + val < count:
        raise ValueError(
            f"test and val must be fewer than the {count} images of {name}, got {test} + {val}"
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
    """Return the official splits of a dataset.

    Where it has no val split, `val` of its train images are taken by their hash.

    held_out: image ids of "test" and, if there is one, "val". Raises ValueError where nothing would
    be left to train on.
    """
    taken = np.concatenate(list(held_out.values()))
    rest = np.setdiff1d(np.arange(count), taken)
    ids = by_hash(name, rest.tolist())
    chosen = held_out["val"] if "val" in held_out else ids[:val]
    train = np.setdiff1d(rest, chosen)
    if not (len(train) and len(chosen) and len(held_out["test"])):
        raise ValueError(
            f"{name} must have images to train on and images to hold out, got {count} images, "
            f"{len(held_out['test'])} of them for testing"
        )
    return {"test": np.sort(held_out["test"]), "val": np.sort(chosen), "train": train}
