"""Images with labels and stable ids: where they come from, how they are stored and loaded."""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.data.extra import Extra
    from sat_ray.data.split import Split

__all__ = ["Extra", "Split"]

__getattr__ = lazy_names(__name__, {"extra": ["Extra"], "split": ["Split"]})
