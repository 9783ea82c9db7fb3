"""Check the network of a sweep before it trains: that it takes the images and can be trained."""

from sat_ray.models import ModelSpec, check_user_defined_model
from sat_ray.sweep.config import SweepConfig
from sat_ray.training.progressive_resizing import check_resizing, image_shape
from sat_ray.utils.import_string import is_reference


def check_network(config: SweepConfig, classes: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError where a user-defined network cannot take the images or cannot be trained.

    shape: (C, H, W) of the images.
    """
    check_resizing(config.training, shape)
    if not is_reference(config.model.name):
        return
    spec = spec_of_trial(config, classes, shape)
    sizes = (
        image_shape(one, epoch, shape)
        for one in (config.training, config.trial_training())
        for epoch in range(one.epochs)
    )
    check_user_defined_model(
        spec, shape, tuple(size for size in dict.fromkeys(sizes) if size != shape)
    )


def spec_of_trial(config: SweepConfig, classes: int, shape: tuple[int, ...]) -> ModelSpec:
    """Describe the network with an activation whose derivative is known. shape: (C, H, W)."""
    half = (0.5,) * shape[0]
    return ModelSpec(
        name=config.model.name,
        activation="silu",  # has no kink, so that finite differences can be trusted
        num_classes=classes,
        in_channels=shape[0],
        width=config.model.width,
        mean=half,
        std=half,
    )
