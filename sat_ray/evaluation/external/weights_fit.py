"""Fit published weights to a network by name.

An entry of the file is a prefix behind which every name of the network is found, be it the name of
a nested dictionary or a part of the names in it. Mean and deviation of the images are no part of
the match: many files have them where the network has none, and the other way round.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sat_ray.evaluation.external.weights_file import PublishedWeights, reduced

AVERAGED = {"ema", "swa", "averaged"}  # in names of averaged weights, which are those published
SHOWN = 4  # names in a message
PAIRS = (("mean", "std"), ("mu", "sigma"), ("mu", "std"), ("new_mean", "new_std"))
MOST_CHANNELS = 4
COUNTER = "num_batches_tracked"  # of BatchNorm; no result depends on it


@dataclass(frozen=True)
class FittedWeights:
    """The tensors that a network takes from a file.

    tensors: a complete state dict of the network; entry: where they lie in the file, "" for the
    top; others: the entries that fit too; kept: names of the network's head that stay its own;
    normalization: the file's mean and deviation of the images, where the network has no place for
    them, else None.
    """

    tensors: dict[str, Tensor]
    entry: str
    others: tuple[str, ...]
    kept: tuple[str, ...]
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None

    def __str__(self) -> str:
        """Return in one line what was taken."""
        said = f"entry {self.entry}" if self.entry else "the top of the file"
        if self.others:
            said += f" (others that fit: {', '.join(one or 'the top' for one in self.others)})"
        if self.kept:
            said += f"; not loaded: {listed(self.kept)}"
        if self.normalization:
            mean, std = (", ".join(f"{one:.4g}" for one in each) for each in self.normalization)
            said += f"; images are normalized by the file's mean {mean} and std {std}"
        return said


def fit_weights(
    weights: PublishedWeights,
    network: nn.Module,
    *,
    entry: str = "",
    heads: Collection[str] = (),
) -> FittedWeights:
    """Find a network's tensors in a file.

    entry: where they lie in it (`state_dict`); "": where they fit, averaged weights (EMA) first;
    heads: the network's modules whose tensors may be missing or have other shapes, because the
    classes are others. Raises ValueError, in one line, where names are missing or left over, shapes
    differ, or numbers are not finite.
    """
    own = network.state_dict()
    places = _Places.of(own, heads=heads)
    prefixes = _fitting(weights, places, entry=entry)
    if not prefixes:
        raise ValueError(_misfit(weights, places, entry=entry))
    prefix = prefixes[0]
    if left := _left_over(weights, places, prefixes):
        raise ValueError(_misfit(weights, places, entry=entry, left=left))
    found = {
        place: weights.tensors[prefix + name]
        for name, place in places.loaded.items()
        if prefix + name in weights.tensors
    }
    pair = _nearest_pair(weights.tensors, prefix)
    if pair is not None and places.pair is not None:
        found |= {
            place: _reshaped(weights.tensors[name], own[place])
            for place, name in zip(places.pair, pair, strict=True)
        }
    kept = _kept_head(found, own, places)
    tensors = own | found | {place: own[place] for place in kept}
    _check(tensors, own, what=f"weights {weights.uri}", whole=places.pair or ())
    entries = [one.removesuffix(".") for one in prefixes]
    return FittedWeights(
        tensors=tensors,
        entry=entries[0],
        others=tuple(entries[1:]),
        kept=kept,
        normalization=None if places.pair is not None else _numbers(weights.tensors, pair),
    )


@dataclass(frozen=True)
class _Places:
    """The names of a network's tensors.

    wanted: names that a file must have; loaded: where each name goes in the network's state dict,
    counters of BatchNorm and the head included; head: the names of the head; pair: mean and
    deviation in the state dict.
    """

    wanted: tuple[str, ...]
    loaded: dict[str, str]
    head: tuple[str, ...]
    pair: tuple[str, str] | None

    @classmethod
    def of(cls, own: Mapping[str, Tensor], *, heads: Collection[str]) -> "_Places":
        pairs = _pairs(own)
        apart = {name for pair in pairs for name in pair}
        places = {name: place for place, name in reduced(own).items() if place not in apart}
        shared = _shared_prefix(places)
        loaded = {name.removeprefix(shared): place for name, place in places.items()}
        of_head = tuple(
            name
            for name, place in loaded.items()
            if any(place.startswith(f"{head}.") for head in heads)
        )
        wanted = tuple(
            name for name in loaded if not name.endswith(COUNTER) and name not in of_head
        )
        return cls(wanted, loaded, of_head, pairs[0] if pairs else None)


def _shared_prefix(names: Collection[str]) -> str:
    """Return the parts, each with a dot, with which all names begin; a last part is never one."""
    found = ""
    split = [name.split(".")[:-1] for name in names]
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        found += f"{parts[0]}."
    return found


def _pairs(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the names of mean and deviation of images, nearest to the top first."""
    found = []
    for name in tensors:
        parent, dot, last = name.rpartition(".")
        for first, second in PAIRS:
            other = f"{parent}{dot}{second}"
            if last == first and other in tensors:
                channels = {tensors[name].numel(), tensors[other].numel()}
                if len(channels) == 1 and max(channels) <= MOST_CHANNELS:
                    found.append((name, other))
    return sorted(found, key=lambda pair: pair[0].count("."))


def _nearest_pair(tensors: Mapping[str, Tensor], prefix: str) -> tuple[str, str] | None:
    """Return the pair whose name has the most parts in common with a prefix."""
    wanted = prefix.split(".")

    def shared(pair: tuple[str, str]) -> int:
        parts = zip(pair[0].split("."), wanted, strict=False)
        return next((n for n, (one, other) in enumerate(parts) if one != other), len(wanted))

    return max(_pairs(tensors), key=shared, default=None)


def _matches(weights: PublishedWeights, places: _Places) -> Counter[str]:
    """Count for every prefix of the file how many of the wanted names follow it."""
    wanted = set(places.wanted)
    found: Counter[str] = Counter()
    for name in weights.tensors:
        parts = name.split(".")
        for first in range(len(parts)):
            if ".".join(parts[first:]) in wanted:
                found["".join(f"{part}." for part in parts[:first])] += 1
    return found


def _fitting(weights: PublishedWeights, places: _Places, *, entry: str) -> list[str]:
    """Return the prefixes behind which every wanted name is found, the one to take first."""
    found = _matches(weights, places)
    complete = [prefix for prefix in found if found[prefix] == len(places.wanted)]
    if entry:
        complete = [prefix for prefix in complete if f".{entry}." in f".{prefix}"]
    return sorted(complete, key=lambda prefix: (not _averaged(prefix), prefix.count(".")))


def _averaged(prefix: str) -> bool:
    return not AVERAGED.isdisjoint(re.split(r"[._]", prefix.lower()))


def _left_over(weights: PublishedWeights, places: _Places, prefixes: Collection[str]) -> list[str]:
    """Return the names beside those of the network, in the dictionaries that hold them."""
    used = {prefix + name for prefix in prefixes for name in places.loaded}
    used |= {name for pair in _pairs(weights.tensors) for name in pair}
    first = next(iter(prefixes))
    groups = {weights.groups[first + name] for name in places.wanted}
    heads = {name.rpartition(".")[0] for name in places.head}

    def belongs(name: str, tensor: Tensor) -> bool:
        """Return whether a tensor is a counter, of epochs or so, or of another head."""
        counter = tensor.dim() == 0 and not tensor.is_floating_point()
        inside = any(name.startswith(f"{prefix}{head}.") for prefix in prefixes for head in heads)
        return counter or inside

    return [
        name
        for name, tensor in weights.tensors.items()
        if name not in used and weights.groups[name] in groups and not belongs(name, tensor)
    ]


def _reshaped(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.reshape(like.shape) if tensor.numel() == like.numel() else tensor


def _kept_head(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], places: _Places
) -> tuple[str, ...]:
    """Return the names of the whole head where one of its tensors does not fit."""
    head = [places.loaded[name] for name in places.head]
    fits = all(place in found and found[place].shape == own[place].shape for place in head)
    return () if fits else tuple(head)


def _check(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], *, what: str, whole: Collection[str]
) -> None:
    """Raise ValueError for tensors of other shapes or kinds. whole: what may be whole numbers."""
    for place, tensor in tensors.items():
        if tensor.shape != own[place].shape:
            raise ValueError(
                f"{what}: {place} must have the shape {tuple(own[place].shape)}, "
                f"got {tuple(tensor.shape)}; give the weights of this network"
            )
        real = tensor.is_floating_point() or place in whole
        if own[place].is_floating_point() and not real:
            raise ValueError(
                f"{what}: {place} must hold real numbers, got {tensor.dtype}; give weights that "
                "are not quantized"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{what}: {place} holds NaN or infinite numbers; "
                "give weights of a training that did not diverge"
            )


def _misfit(
    weights: PublishedWeights, places: _Places, *, entry: str, left: Collection[str] = ()
) -> str:
    """Say in one line what a file lacks and what it has instead."""
    what = f"weights {weights.uri}"
    if entry and not left and (complete := _fitting(weights, places, entry="")):
        known = ", ".join(prefix.removesuffix(".") or "the top of the file" for prefix in complete)
        return f"{what}: the network's tensors are not in the entry {entry}; they are in {known}"
    found = _matches(weights, places)
    prefix = max(found, key=lambda one: (found[one], -len(one)), default="")
    missing = [name for name in places.wanted if prefix + name not in weights.tensors]
    if not left:
        names = (name for name in weights.tensors if name.startswith(prefix))
        left = [name for name in names if name.removeprefix(prefix) not in places.loaded]
    parts = [
        f"the file lacks {listed(missing)}" if missing else "",
        f"the network has no place for {listed(left)}" if left else "",
    ]
    return (
        f"{what} do not fit the network: {' and '.join(filter(None, parts))}; "
        "give the weights of this network"
    )


def listed(names: Collection[str]) -> str:
    """Count names and write the first of them."""
    shown = ", ".join(list(names)[:SHOWN])
    dots = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({shown}{dots})"


def _numbers(
    tensors: Mapping[str, Tensor], pair: tuple[str, str] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if pair is None:
        return None
    mean, std = (tuple(tensors[name].flatten().tolist()) for name in pair)
    return mean, std
