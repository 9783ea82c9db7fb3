"""Smooth adversarial training: a generator of epochs, and its parts.

The public names are loaded when they are first used, so that the settings can be read without the
training loop.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_ray.training.loop import RunOptions, fit
    from sat_ray.training.resume.state import EpochReport, TrainingState
    from sat_ray.training.settings import TrainingSettings

__all__ = ["EpochReport", "RunOptions", "TrainingSettings", "TrainingState", "fit"]

_HOMES = {
    "EpochReport": "resume.state",
    "RunOptions": "loop",
    "TrainingSettings": "settings",
    "TrainingState": "resume.state",
    "fit": "loop",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
