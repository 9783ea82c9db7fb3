"""Check the network of a sweep before it trains: that it takes the images and can be trained."""

import logging

from sat_ray.models import ModelSpec, check_timm_model, check_user_defined_model
from sat_ray.models.architectures.timm_names import is_timm
from sat_ray.storage.files_read import FilesRead
from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.execute.initial_weights import check_initial_weights
from sat_ray.training.progressive_resizing import check_resizing, image_shape
from sat_ray.utils.import_string import is_reference


def check_network(
    config: SweepConfig, classes: int, shape: tuple[int, ...], *, download: bool = True
) -> str:
    """Return what is taken from initial weights, in one line, or "".

    shape: (C, H, W) of the images; download: whether weights on a hub are read too. Raises
    ValueError where the network or its initial weights do not fit the images.
    """
    check_resizing(config.training, shape)
    if not is_checked(config):
        return ""
    spec = spec_of_trial(config, classes, shape)
    taken = ""
    if config.model.initial_weights:
        taken = check_initial_weights(config.model.initial_weights, spec, download=download)
    if not _is_from_outside(config.model.name):
        return taken
    sizes = (
        image_shape(one, epoch, shape)
        for one in (config.training, config.trial_training())
        for epoch in range(one.epochs)
    )
    smaller = tuple(size for size in dict.fromkeys(sizes) if size != shape)
    if is_timm(config.model.name):
        check_timm_model(spec, smaller)
        return taken
    read = FilesRead()
    with read.noted():
        check_user_defined_model(spec, shape, smaller)
    if warning := read.warning(f"model.name {config.model.name}"):
        logging.getLogger(__name__).warning(warning)
    return taken


def is_checked(config: SweepConfig) -> bool:
    """Say whether a network may not fit: it is not of this package, or starts from weights."""
    return _is_from_outside(config.model.name) or bool(config.model.initial_weights)


def _is_from_outside(model: str) -> bool:
    return is_reference(model) or is_timm(model)


def spec_of_trial(config: SweepConfig, classes: int, shape: tuple[int, ...]) -> ModelSpec:
    """Describe the network with an activation whose derivative is known. shape: (C, H, W)."""
    half = (0.5,) * shape[0]
    return ModelSpec(
        name=config.model.name,
        activation="silu",  # has no kink, so that finite differences can be trusted
        num_classes=classes,
        in_channels=shape[0],
        stem=config.model.stem,
        width=config.model.width,
        mean=half,
        std=half,
        **config.model.of_timm(shape),
    )
