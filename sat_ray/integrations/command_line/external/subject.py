"""A model made elsewhere and the images to attack it on: opened, checked and named."""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from sat_ray.attacks import AttackSpec
from sat_ray.checkpoint import MODEL_JSON, RESTORE, read_description
from sat_ray.data.class_names import label_order, numbers_out_of_order, relabelled
from sat_ray.data.shards.convert import ExternalImages, open_data, written
from sat_ray.data.shards.manifest import read_manifest
from sat_ray.data.shards.reading import image_ids, labels, read_rows
from sat_ray.evaluation.external.loading import (
    kind_of,
    load_source,
    network_with_weights,
    try_source,
)
from sat_ray.evaluation.external.validation import (
    ZeroGradients,
    check_copyable,
    check_labels,
    try_attack,
    try_model,
    try_more,
)
from sat_ray.integrations.command_line.checks.sweep_folder import folder_name, tracking_of
from sat_ray.integrations.command_line.external.options import ExternalOptions
from sat_ray.models import Normalized
from sat_ray.storage.files_read import FilesRead
from sat_ray.storage.store import Storage
from sat_ray.sweep.execute.evaluation import sampled_rows
from sat_ray.sweep.execute.inputs import configuration_of
from sat_ray.sweep.search.search_space import SearchPoint
from sat_ray.sweep.tasks import Dataset, through_every_backward
from sat_ray.utils.bounds import shown
from sat_ray.utils.probabilities import bounded_outputs
from sat_ray.utils.serialization import content_hash, to_json

PROBED_CALLS = 8  # calls of the model on images from all over the split, before any worker starts
WEIGHTS = "weights.safetensors"
REORDERED = "the data has the model's classes in another order: labels are matched by name"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model and the images, opened and found to fit each other.

    uri: where every worker can read the model; slots: rows of every call; configuration: of a
    checkpoint's training, else None; attacks: what the model is to survive, through every backward
    pass that its training used; zeros: where the first of them finds a gradient of 0; weights: the
    file of the model's weights, "" where the model has them itself; weights_taken: what was read
    from it, in words; first_ones: whether images that are not all of the split are its first ones;
    label_order: the model's class of each label, where the dataset has the same classes in another
    order; warnings: what is odd, in sentences.
    """

    kind: str
    uri: str
    digest: str
    model: torch.nn.Module
    dataset: Dataset
    n_split: int
    n: int
    classes: int
    slots: int
    configuration: SearchPoint | None
    attacks: tuple[AttackSpec, ...]
    zeros: ZeroGradients
    weights: str = ""
    weights_taken: str = ""
    first_ones: bool = False
    label_order: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def sample(self) -> int | None:
        """Return the number of images drawn; None where all or the first ones are evaluated."""
        return None if self.first_ones or self.n == self.n_split else self.n


def open_subject(given: ExternalOptions, root: Storage, temporary: Path) -> Subject:
    """Open data and model and check that they fit; ValueError in one line where they do not.

    Nothing is written before both could be opened. Images that are written then stay where the
    model fails later: the next evaluation of the same images finds them.
    """
    data, shape, n_split = _open_data(given)
    kind, uri = _fetch(given, root, temporary)
    try_source(kind, uri, shape)
    weights, taken = _cleaned_weights(given, temporary)
    model, digest = load_source(kind, uri, weights=weights)
    read = FilesRead()
    with read.noted():
        given = given.with_slots(model, shape)
    dataset = Dataset.open(written(data, root))
    assert dataset is not None
    del data  # an .npz is in memory
    shards = Storage(dataset.uri)
    names = dataset.manifest["class_names"]
    known = _class_names(kind, uri)
    order = label_order(known, names, what=f"data {given.data}")
    some = relabelled(read_rows(shards, given.split, torch.arange(min(given.rows, n_split))), order)
    expected = len(names) or None
    with read.noted():
        clean = try_model(model, some, slots=given.rows, expected=expected, what=given.model)
    classes = clean.shape[1]
    if expected is None:  # with names of classes, labels were checked when they were written
        check_labels(
            labels(shards, given.split),
            partial(image_ids, shards, given.split),
            classes=classes,
            what=f"data {given.data}",
        )
    configuration = _configuration(model, uri)
    attacks = _attacks(given, configuration, classes)
    zeros = try_attack(model, some, clean, attacks[0], slots=given.rows, what=given.model)
    check_copyable(model, attacks[0], what=given.model)
    rows = sampled_rows(n_split, min(n_split, PROBED_CALLS * given.rows), seed=given.seed)
    sample = relabelled(read_rows(shards, given.split, rows), order)
    logits = try_more(model, sample, attacks[0], slots=given.rows, what=given.model)
    warnings = (
        str(zeros),
        bounded_outputs(logits),
        read.warning("the model"),
        REORDERED if order else "",
        "" if known else numbers_out_of_order(names),
    )
    return Subject(
        kind=kind,
        uri=uri,
        digest=digest,
        model=model,
        dataset=dataset,
        n_split=n_split,
        n=given.images or n_split,
        classes=classes,
        slots=given.rows,
        configuration=configuration,
        attacks=attacks,
        zeros=zeros,
        weights=weights,
        weights_taken=taken,
        first_ones=given.protocol != "none",
        label_order=order,
        warnings=tuple(filter(None, warnings)),
    )


def _attacks(
    given: ExternalOptions, configuration: SearchPoint | None, classes: int
) -> tuple[AttackSpec, ...]:
    """Return the attacks, each through every backward pass that training used."""
    specs = given.attacks(num_classes=classes)
    return tuple(one for spec in specs for one in variants_of(configuration, spec))


def _open_data(
    given: ExternalOptions,
) -> tuple[Storage | ExternalImages, tuple[int, ...], int]:
    """Return the images, their shape (C, H, W), and how many the split has."""
    found = open_data(
        given.data,
        image_size=given.image_size,
        resize=given.image_resize,
        channels=_channels(given.model),
    )
    if isinstance(found, Storage):
        manifest = read_manifest(found)
        shape, splits = tuple(manifest["shape"]), manifest["splits"]
    else:
        shape, splits = found.shape, {"test": found.count}
    if not splits.get(given.split):
        raise ValueError(
            f"--split {given.split!r} of data {given.data} has no images; "
            f"choose {', '.join(name for name in splits if splits[name])}"
        )
    n_split = splits[given.split]
    if given.images is not None and given.images > n_split:
        raise ValueError(
            f"--images must be an integer from 1 to {n_split}, the images of split {given.split}, "
            f"got {given.images}"
        )
    return found, shape, n_split


def _fetch(given: ExternalOptions, root: Storage, temporary: Path) -> tuple[str, str]:
    """Return the kind of the model and where its files lie, fetched from MLflow if need be."""
    kind = kind_of(given.model)
    uri = given.model
    if kind == "mlflow":
        from sat_ray.integrations.mlflow import fetch_model

        fetched = fetch_model(
            given.model,
            tracking_uri=tracking_of(given.tracking_uri, root),
            folder=str(temporary),
            allow_pickle=given.allow_pickle,
        )
        uri = str(fetched)
        kind = "pt2" if uri.endswith(".pt2") else "pickle"
    if kind == "checkpoint":
        uri = Storage.at(uri).uri  # a worker may run in another folder
    if kind == "pt2" and given.allow_pickle:
        kind = "pickled_pt2"
    return kind, uri


def _cleaned_weights(given: ExternalOptions, temporary: Path) -> tuple[str, str]:
    """Write the given weights as a plain file for all workers; return it and what it holds.

    The file names the tensors as the network does; "" and "" where no weights are given.
    """
    if not given.weights:
        return "", ""
    model, fitted = network_with_weights(given.model, given.weights, entry=given.weights_entry)
    file = temporary / WEIGHTS
    # copies: the format holds no tensors that share their memory
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    file.write_bytes(safetensors.torch.save(tensors))
    return str(file), str(fitted)


def _channels(model: str) -> int | None:
    """Return the channels of the images of a checkpoint of sat_ray; None for any other model."""
    if kind_of(model) != "checkpoint":
        return None
    try:
        found = Storage.at(model).read_json(MODEL_JSON)["spec"]["in_channels"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # what is wrong with it is said when it is loaded
    return found if found in (1, 3) else None


def _class_names(kind: str, uri: str) -> list[str]:
    """Return the classes that a checkpoint was trained on; [] where they are not known."""
    if kind != "checkpoint":
        return []
    names = read_description(Storage.at(uri))["about"].get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"checkpoint {uri}: class_names of {MODEL_JSON} must be a list of texts, got "
            f"{shown(names)}; {RESTORE}"
        )
    return names


def _configuration(model: torch.nn.Module, uri: str) -> SearchPoint | None:
    """Return how a checkpoint was trained; None for any other model.

    Where the checkpoint does not say it, its own activation is taken.
    """
    if not isinstance(model, Normalized) or model.spec is None or kind_of(uri) != "checkpoint":
        return None
    own = SearchPoint(activation=model.spec.activation, alpha=model.spec.alpha)
    return configuration_of(Storage.at(uri)) or own


def variants_of(configuration: SearchPoint | None, spec: AttackSpec) -> list[AttackSpec]:
    """Return the attack through the true backward pass and, where training replaced it, the other.

    A backward pass that training replaced hides gradients.
    """
    return [spec] if configuration is None else through_every_backward(spec, configuration)


def identify(given: ExternalOptions, subject: Subject) -> tuple[str, dict[str, Any]]:
    """Return the evaluation's name and, as JSON, what determines its result.

    The numerical environment is not among it.
    """
    spec = subject.model.spec if isinstance(subject.model, Normalized) else None
    data = {"hash": subject.dataset.hash, "split": given.split, "sample": subject.sample}
    if subject.first_ones and subject.n < subject.n_split:
        data["first"] = subject.n
    identity = {
        "model": {"kind": subject.kind, "digest": subject.digest, "spec": to_json(spec)},
        "data": data,
        "attacks": [to_json(attack) for attack in subject.attacks],
        "cascade": given.in_cascade,
        "seed": given.seed,
        "slots": given.rows,
    }
    if subject.label_order:
        identity["label_order"] = list(subject.label_order)
    made = f"{_slug(given.weights or given.model)}-{_slug(given.data)}-{content_hash(identity)[:8]}"
    return folder_name(given.name or made), identity


def _slug(text: str) -> str:
    last = re.sub(r"\.(pt2|npz|pt|pth|safetensors)$", "", text.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9_]+", "-", last).strip("-_")[:24] or "unnamed"


def staged(subject: Subject, storage: Storage) -> Subject:
    """Copy a model or weights that are one file to the evaluation's folder, for every worker."""
    if subject.weights:
        if not storage.exists(WEIGHTS):
            storage.write(WEIGHTS, Path(subject.weights).read_bytes())
        return replace(subject, weights=storage.full(WEIGHTS))
    if subject.kind in ("checkpoint", "function"):
        return subject
    name = "model.pt2" if subject.uri.endswith(".pt2") else "model.pth"
    if not storage.exists(name):
        storage.write(name, Path(subject.uri).read_bytes())
    return replace(subject, uri=storage.full(name))
