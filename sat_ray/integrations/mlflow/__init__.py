"""The only package that imports mlflow.

It does so only when a tracker is made or a model is fetched: the import takes seconds.
"""

from typing import TYPE_CHECKING

from sat_ray.utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from sat_ray.integrations.mlflow.models import fetch_model
    from sat_ray.integrations.mlflow.tracker import MlflowTracker

__all__ = ["MlflowTracker", "fetch_model"]

__getattr__ = lazy_names(__name__, {"models": ["fetch_model"], "tracker": ["MlflowTracker"]})
