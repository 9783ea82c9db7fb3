"""Make configs for tests."""

import dataclasses
from typing import Any

from sat_ray.sweep.config import SweepConfig
from sat_ray.sweep.recipes import RECIPES


def changed(recipe: str, **sections: dict[str, Any]) -> SweepConfig:
    """Return a recipe with some fields of some sections changed."""
    config = RECIPES[recipe]()
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **fields)
            for name, fields in sections.items()
        },
    )
