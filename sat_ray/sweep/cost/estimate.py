"""Estimate what a sweep costs: floating-point operations, accelerator-hours and storage.

    F        operations of one forward pass of one image: counted by torch on its meta device, where
             nothing is computed; for the networks of the recipes already in `known_networks`
    2 F      with the gradient at the image: a step of an attack
    3 F      with the gradient at the weights too: an update
    hours    from one measured rate of training, resources.images_per_second, in proportion to these
             operations; where that is a rate in bf16, evaluation and cards, which compute in
             float32, take longer than the estimate
    smaller  images of the first epochs (training.resize_start) cost what a forward pass of their
             size costs

Not counted: validation while training, optimizer, decoding, communication, waiting for nodes.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from math import prod

from sat_ray.data.sources.base import Source
from sat_ray.evaluation.card.settings import most_passes
from sat_ray.models.spec import ModelSpec
from sat_ray.sweep.config import ModelSettings, SweepConfig
from sat_ray.sweep.cost.known_networks import KNOWN, Counted, Network
from sat_ray.sweep.plan.evaluations import attacks_for, strong_attacks_for
from sat_ray.sweep.plan.trainings import planned_trials
from sat_ray.sweep.search.search_space import groups
from sat_ray.sweep.tasks import through_every_backward
from sat_ray.training.progressive_resizing import image_shape
from sat_ray.training.settings import TrainingSettings
from sat_ray.utils.import_string import is_reference

# Classes where preparing the images counts them: enough for all targets of AutoAttack's budget.
UNKNOWN_CLASSES = 10
JPEG_SHARE = 0.1  # of the raw pixels, roughly, at the quality in which images are stored
UNMEASURED = (
    "not known; give --resources.images-per-second N: measured training images per second of one "
    "accelerator, attack included"
)


def costs(config: SweepConfig, source: Source, passes: Mapping[str, float]) -> dict[str, str]:
    """Return what is shown. passes: see `dry_run.passes_of`.

    What cannot be known without the images, or without own code, is left out.
    """
    shape = config.data.shape()
    if shape is None or is_reference(config.model.name):
        if not config.resources.images_per_second:
            return {"estimated accelerator-hours": UNMEASURED}
        return {}
    forward, parameters = forward_operations(config, shape, classes=source.classes)
    shares = _shares(config, shape, classes=source.classes)
    done = operations(config, shape, passes, classes=source.classes)
    return {
        "one forward pass": f"{forward / 1e9:.3g} GFLOP an image of {shape[2]} x {shape[1]}, "
        f"{parameters / 1e6:.3g} million parameters",
        **_sizes(config, shape, shares["training"]),
        **{f"estimated operations, {name}": f"{count:.2g} FLOP" for name, count in done.items()},
        **_spent(config, hours_of(config, done, forward)),
        "estimated storage": _storage(config, source, shape, parameters),
    }


def estimated_hours(
    config: SweepConfig, source: Source, passes: Mapping[str, float]
) -> dict[str, float]:
    """Return the accelerator-hours of every part of a sweep.

    {} where `costs` shows none. passes: see `dry_run.passes_of`.
    """
    shape = config.data.shape()
    if shape is None or is_reference(config.model.name) or not config.resources.images_per_second:
        return {}
    forward, _ = forward_operations(config, shape, classes=source.classes)
    return hours_of(config, operations(config, shape, passes, classes=source.classes), forward)


def operations(
    config: SweepConfig, shape: tuple[int, int, int], passes: Mapping[str, float], *, classes: int
) -> dict[str, float]:
    """Return the floating-point operations of every part of a sweep. shape: of whole images."""
    forward, _ = forward_operations(config, shape, classes=classes)
    shares = _shares(config, shape, classes=classes)
    return {
        name: forward * count * shares.get(name, 1)
        for name, count in forwards(config, passes).items()
    }


def _shares(config: SweepConfig, shape: tuple[int, int, int], *, classes: int) -> dict[str, float]:
    plans = {"search": config.trial_training(), "training": config.training}
    return {
        name: share_of_whole_images(config, training, shape, classes=classes)
        for name, training in plans.items()
    }


def forward_operations(
    config: SweepConfig, shape: tuple[int, int, int], *, classes: int
) -> Counted:
    """Return the floating-point operations of a forward pass of one image, and the parameters.

    A multiplication and an addition count as two operations.
    """
    model = config.model
    network = (model.name, model.stem, model.width, shape, classes or UNKNOWN_CLASSES)
    known = None if model.patch_size else KNOWN.get(network)
    return known or count(network, patch_size=model.patch_size)


@functools.cache
def count(network: Network, *, patch_size: int = 0) -> Counted:
    """Count what `known_networks` does not hold; this imports torch and torchvision.

    patch_size: of a network of timm.
    """
    import torch

    from sat_ray.evaluation.engine.call_size import count_operations
    from sat_ray.models import model_from_spec
    from sat_ray.models.architectures.shapes_only import shapes_only

    name, stem, width, shape, classes = network
    of_timm = ModelSettings(name=name, stem=stem, width=width, patch_size=patch_size).of_timm(shape)
    spec = ModelSpec(
        name=name,
        num_classes=classes,
        in_channels=shape[0],
        stem=stem,
        width=width,
        mean=(0.5,) * shape[0],
        std=(0.5,) * shape[0],
        **of_timm,
    )
    with shapes_only():
        net, image = model_from_spec(spec, seed=0).eval(), torch.empty(1, *shape)
    return count_operations(net, image), sum(parameter.numel() for parameter in net.parameters())


def share_of_whole_images(
    config: SweepConfig, training: TrainingSettings, shape: tuple[int, int, int], *, classes: int
) -> float:
    """Return a training's operations as a share of those with all images whole, in (0, 1].

    shape: of whole images.
    """
    if not training.resize_start:
        return 1.0
    epochs = Counter(image_shape(training, epoch, shape) for epoch in range(training.epochs))
    each = {size: forward_operations(config, size, classes=classes)[0] for size in {*epochs, shape}}
    return sum(each[size] * count for size, count in epochs.items()) / (
        each[shape] * training.epochs
    )


def _sizes(config: SweepConfig, shape: tuple[int, int, int], share: float) -> dict[str, str]:
    if not config.training.resize_start:
        return {}
    first: dict[tuple[int, int, int], int] = {}
    for epoch in range(config.training.epochs):
        first.setdefault(image_shape(config.training, epoch, shape), epoch)
    sizes = ", ".join(
        f"{width} x {height} from epoch {epoch + 1}" for (_, height, width), epoch in first.items()
    )
    return {
        "sizes of training images": f"{sizes}: {100 * share:.0f} % of the operations "
        "that whole images would take"
    }


def forwards_per_image(training: TrainingSettings) -> int:
    """Return what one image costs in one epoch of training, in forward passes."""
    if training.attack_replays:
        return 3 * training.attack_replays
    against_clean_logits = training.objective == "trades"
    return 2 * training.attack_steps + against_clean_logits + 3 * training.update_passes()


def forwards(config: SweepConfig, passes: Mapping[str, float]) -> dict[str, float]:
    """Return the cost of every part of a sweep in forward passes of one image."""
    trained = forwards_per_image(config.training) / config.training.passes_per_image()
    each = {"search": trained, "training": trained, "queries of cards": 1}
    with_gradient = 2  # at the image: evaluations and cards
    return {name: count * each.get(name, with_gradient) for name, count in passes.items()}


def hours_of(
    config: SweepConfig, operations: Mapping[str, float], forward: int
) -> dict[str, float]:
    """Return the accelerator-hours of every part of a sweep, {} without a measured rate.

    forward: operations of one forward pass.
    """
    per_hour = (
        3600 * config.resources.images_per_second * forwards_per_image(config.training) * forward
    )
    return {name: count / per_hour for name, count in operations.items()} if per_hour else {}


def _spent(config: SweepConfig, hours: Mapping[str, float]) -> dict[str, str]:
    if not hours:
        return {"estimated accelerator-hours": UNMEASURED}
    total, rate = sum(hours.values()), config.resources.images_per_second
    parts = ", ".join(f"{name} {count:.3g}" for name, count in hours.items())
    faster = config.training.precision == "bf16" and config.evaluation.gradient == "float32"
    caveat = "; their float32 is slower than the bf16 of this rate" if faster else ""
    shown = {
        "estimated accelerator-hours": f"{total:.3g} at {rate:g} images/s each "
        f"({parts}; but for search and training at most{caveat})"
    }
    money = config.cost.money(3600 * total)
    if money is None:
        return shown
    return shown | {
        "estimated price": f"{money:,.2f} {config.cost.currency} "
        "(but for search and training at most)"
    }


def _storage(
    config: SweepConfig, source: Source, shape: tuple[int, int, int], parameters: int
) -> str:
    share = JPEG_SHARE if config.data.encoding == "jpeg" else 1
    images = ((source.images - source.test) * share + source.test) * prod(shape)
    training, trials = config.training, planned_trials(config)
    models = len(groups(config.search.points())) * len(config.final.seeds)
    moments = 2 if training.optimizer == "adamw" else 1
    state = 1 + moments + bool(training.ema_decay)
    copies = 1 + state + bool(training.guard_every) * state  # the best weights, and the guard's
    kept = models + trials + (trials * copies if len(config.search.rungs) > 1 else 0) + 2 * copies
    checkpoints = 4 * parameters * kept
    return f"{_bytes(images)} of images, {_bytes(checkpoints)} of weights and states of training"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"


def passes_of(config: SweepConfig, source: Source) -> dict[str, float]:
    """Return the passes of every part of a sweep, of one image each; what is evaluated, at most."""
    per_image = config.training.passes_per_image()
    images = config.images_per_epoch(source.images - source.test - source.val)
    seeds = len(config.final.seeds)
    chosen = [group.members[0] for group in groups(config.search.points())]
    trials = (
        planned_trials(config)
        * config.search.rungs[-1]
        // len(config.search.rungs)
        * images
        * per_image
    )
    train = len(chosen) * seeds * config.training.epochs * images * per_image
    attacks = sum(
        spec.restarts * (spec.steps + 1) for one in chosen for spec in attacks_for(config, one)
    )
    test, val = (config.evaluation.evaluated(count) for count in (source.test, source.val))
    evaluate = seeds * attacks * test
    classes = source.classes or UNKNOWN_CLASSES
    strong = sum(
        spec.runs * (spec.steps + 1)
        for one in chosen
        for spec in strong_attacks_for(config, one, num_classes=classes)
    )
    first = sum(
        spec.runs * (spec.steps + 1)
        for one in chosen
        for spec in through_every_backward(config.evaluation_attacks()[0], one)
    )
    judged = min(config.card.images, source.val) * config.card.candidates
    card = judged * most_passes(config.evaluation_attacks()[0], config.card)
    queries = judged * config.card.cascade_queries
    return {
        "search": trials,
        "training": train,
        "validation": seeds * (first + strong) * val if strong else 0,
        "evaluation": evaluate,
        "strong evaluation": seeds * strong * test,
        "cards": card,
        "queries of cards": queries,
    }
