"""Images with labels and stable ids: where they come from, how they are stored and loaded."""

from sat_ray.data.split import Split

__all__ = ["Split"]
