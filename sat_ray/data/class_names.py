"""Names of classes: of a model against those of a dataset, and what is odd about them."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_ray.data.split import Split

SHOWN = 5
EXTRA_REMEDY = "rename them, or leave the names out where the labels count alike"


def normal(name: str) -> str:
    """Return a name in one Unicode form: an accented letter has two spellings."""
    return unicodedata.normalize("NFC", name)


def doubled(names: Sequence[str]) -> str:
    """Return the first name that another one equals in one Unicode form; "" where all differ."""
    seen = set[str]()
    for name in map(normal, names):
        if name in seen:
            return name
        seen.add(name)
    return ""


def label_order(
    model: Sequence[str],
    data: Sequence[str],
    *,
    what: str,
    whose: str = "that the model was trained on",
    remedy: str = "evaluate on images of the same classes, or rename them",
) -> tuple[int, ...]:
    """Return the model's class of each label of a dataset; () where the two count alike.

    model, data: names of the classes in the order of the labels; empty where they are not known.
    what: the dataset's name; whose: the model's classes; remedy: what to do, all for the message.
    Raises ValueError where the names are others.
    """
    ours, theirs = ([normal(name) for name in names] for names in (model, data))
    if not ours or not theirs or ours == theirs:
        return ()
    if sorted(ours) != sorted(theirs) or doubled(ours):
        raise ValueError(
            f"{what} must have the classes {whose} ({shortened(ours)}), got {shortened(theirs)}; "
            f"{remedy}"
        )
    places = {name: place for place, name in enumerate(ours)}
    return tuple(places[name] for name in theirs)


def extra_labels(manifest: Mapping[str, Any], extra: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the class of each label of extra images, from the manifests; () where they are alike.

    Classes that are only numbered, as in an .npz file without names, are taken in their order.
    Raises ValueError where shape or classes differ.
    """
    what = f"data.extra {extra['dataset']}"
    own = manifest["dataset"]
    check_extra_shape(manifest["shape"], extra, own=own)
    names = manifest["class_names"]
    others = extra["class_names"]
    check_extra_classes(len(names), len(others), own=own, extra=extra["dataset"])
    if others == [str(number) for number in range(len(names))]:
        return ()
    return label_order(names, others, what=what, whose=f"of {own}", remedy=EXTRA_REMEDY)


def check_extra_classes(count: int, found: int, *, own: str, extra: str) -> None:
    """Raise ValueError where extra images have another number of classes. own: a dataset's name."""
    if found != count:
        raise ValueError(
            f"data.extra {extra} must have the {count} classes of {own}, got {found}; "
            "give extra images of all these classes and of no others"
        )


def check_extra_shape(shape: Sequence[int], extra: Mapping[str, Any], *, own: str) -> None:
    """Raise ValueError where extra images, of a manifest, have another shape than a dataset's.

    shape: (C, H, W) of the dataset's images; own: its name.
    """
    if list(extra["shape"]) != list(shape):
        raise ValueError(
            f"data.extra {extra['dataset']} must have images of shape {_size(shape)} (channels, "
            f"height, width), as {own} has, got {_size(extra['shape'])}; convert the extra images"
        )


def shortened(names: Sequence[str]) -> str:
    """List the first names of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def relabelled(split: "Split", order: Sequence[int]) -> "Split":
    """Return a split whose labels are the model's classes. order: from `label_order`."""
    if not order:
        return split
    import torch  # names alone are compared without it

    return dataclasses.replace(split, labels=torch.tensor(order, dtype=torch.int64)[split.labels])


def numbers_out_of_order(names: Sequence[str]) -> str:
    """Return a warning for classes named by numbers that text order has mixed up; "" else."""
    numbers = [int(name) for name in names if name.isascii() and name.isdigit()]
    if len(numbers) < len(names) or numbers == sorted(numbers):
        return ""
    place = next(one for one, number in enumerate(numbers) if number != sorted(numbers)[one])
    return (
        f"the classes are numbers in the order of text ({shortened(names)}): class {place} is "
        f"{names[place]}; if the model counts them as numbers, rename them with leading zeros "
        f"(such as {sorted(numbers)[0]:0{len(str(max(numbers)))}d})"
    )


def below_chance(accuracy: float, classes: int) -> str:
    """Return a warning for a clean accuracy below that of guessing; "" else."""
    if accuracy >= 1 / classes:
        return ""
    return (
        f"the clean accuracy, {100 * accuracy:.1f} %, is below that of guessing, "
        f"{100 / classes:.1f} %: check the order of the classes, and that the model takes [0, 1] "
        "images with as many channels, in the order in which the data has them"
    )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
