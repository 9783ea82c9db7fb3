"""The only package that imports mlflow.

It does so only when a tracker is made or a model is fetched: the import takes seconds.
"""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.integrations.mlflow.client import MlflowTracker
    from sat_ray.integrations.mlflow.models import fetch_model

__all__ = ["MlflowTracker", "fetch_model"]

_HOMES = {
    "MlflowTracker": "client",
    "fetch_model": "models",
}

__getattr__ = lazy_names(__name__, _HOMES)
