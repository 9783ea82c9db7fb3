"""Smooth adversarial training: a generator of epochs, and its parts.

The public names are loaded when they are first used, so that the settings can be read without the
training loop.
"""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.training.loop import RunOptions, fit
    from sat_ray.training.resume.state import EpochReport, TrainingState
    from sat_ray.training.settings import TrainingSettings

__all__ = ["EpochReport", "RunOptions", "TrainingSettings", "TrainingState", "fit"]

_NAMES = {
    "loop": ["RunOptions", "fit"],
    "resume.state": ["EpochReport", "TrainingState"],
    "settings": ["TrainingSettings"],
}

__getattr__ = lazy_names(__name__, _NAMES)
